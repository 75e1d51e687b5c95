// What compilers, processors and systems have each in their own way. Beside it know of these: cpu/isa/ the instruction
// sets, cpu/dispatch.cpp what this processor has, nn/replace_file.cpp the files of POSIX, and nn/dendnorm.h, which
// stands alone, what a library shows. GCC's built-in functions and its pragma that unrolls a loop are Clang's, too.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

// ---- Compilers ----

// One function for the host and for the device.
#if defined(__CUDACC__)
#define DENDNORM_HD __host__ __device__
#else
#define DENDNORM_HD
#endif

// Leaves no copy of a function for the linker.
#define DENDNORM_INLINE __attribute__((always_inline)) inline

// A symbol that others see, in a library that hides the rest.
#define DENDNORM_VISIBLE __attribute__((visibility("default")))

namespace dendnorm::platform {

// ---- Processors ----

// How this thread rounds, and whether subnormal numbers are 0 to it.
DENDNORM_INLINE std::uint64_t float_mode() {
#if defined(__x86_64__)
  return _mm_getcsr();
#elif defined(__aarch64__)
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}

DENDNORM_INLINE void set_float_mode([[maybe_unused]] std::uint64_t mode) {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

// ---- Systems ----

// Asks for large pages within these bytes, where the system has them.
DENDNORM_INLINE void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace dendnorm::platform
