# Looks into the library of the CPU kernels: the object of an instruction set may define one symbol that others see, the
# function that returns its kernels. Of any other, a weak one too, the linker might keep the copy that was compiled for a
# newer processor than the one that runs it (csrc/cpu/impl/base.h).
#
#     cmake -DNM=nm -DLIBRARY=libdendnorm_cpu.a -P symbols.cmake
execute_process(COMMAND "${NM}" -A --defined-only "${LIBRARY}" OUTPUT_VARIABLE listed RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${NM} could not read ${LIBRARY}")
endif()
string(REPLACE "\n" ";" lines "${listed}")
set(sets 0)
foreach(line IN LISTS lines)
  if(NOT line MATCHES "((avx2|avx512|generic|neon)(_[a-z0-9]+)?)\\.cpp\\.o(bj)?: *[0-9a-f]* ([A-Zuvw]) (.*)$")
    continue()
  endif()
  set(set "${CMAKE_MATCH_1}")
  set(symbol "${CMAKE_MATCH_6}")
  if(symbol MATCHES "^_?_ZN8dendnorm3cpu[0-9]+kernels_${set}Ev$")
    math(EXPR sets "${sets} + 1")
  elseif(NOT symbol MATCHES "^DW\\.ref\\.|^__odr_asan|^_?__(asan|ubsan)")
    message(SEND_ERROR "the object of ${set} defines ${symbol} for others, too")
  endif()
endforeach()
if(sets EQUAL 0)
  message(FATAL_ERROR "no object of an instruction set in ${LIBRARY}")
endif()
