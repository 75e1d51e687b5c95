#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifdef DENDNORM_X86
#include <cpuid.h>
#endif
#if defined(__unix__)
#include <unistd.h>
#endif

#include "cpu/kernels.h"

namespace dendnorm::cpu {
namespace {

#ifdef DENDNORM_X86
// Clang before 18 does not know it as a name for __builtin_cpu_supports.
bool supports_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Capability best_of_this_processor() {
#ifdef DENDNORM_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !supports_f16c()) {
    return Capability::kDefault;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? Capability::kAvx512 : Capability::kAvx2;
#elif defined(__aarch64__)
  return Capability::kNeon;  // part of the architecture
#else
  return Capability::kDefault;
#endif
}

Capability choose() {
  const Capability best = best_of_this_processor();
  const char* asked = std::getenv("DENDNORM_CPU_CAPABILITY");
  if (asked == nullptr || *asked == '\0') asked = std::getenv("ATEN_CPU_CAPABILITY");
  if (asked == nullptr) return best;
  Capability wanted = best;
  if (std::strcmp(asked, "default") == 0) wanted = Capability::kDefault;
#ifdef DENDNORM_X86
  if (std::strcmp(asked, "avx2") == 0) wanted = Capability::kAvx2;
#endif
  return wanted < best ? wanted : best;
}

}  // namespace

Capability chosen_capability() {
  static const Capability chosen = choose();
  return chosen;
}

bool multiplies_bfloat16() {
#ifdef DENDNORM_X86
  static const bool does = chosen_capability() == Capability::kAvx512 && __builtin_cpu_supports("avx512bf16");
  return does;
#else
  return false;
#endif
}

std::int64_t second_level_cache() {
  static const std::int64_t bytes = [] {
    std::int64_t told = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return told <= 0 ? std::int64_t{1} << 20 : std::clamp<std::int64_t>(told, 256 << 10, 2 << 20);
  }();
  return bytes;
}

const char* capability() {
  switch (chosen_capability()) {
    case Capability::kAvx512: return "avx512";
    case Capability::kAvx2: return "avx2";
    case Capability::kNeon: return "neon";
    default: return "default";
  }
}

const Kernels& chosen_kernels() {
#ifdef DENDNORM_X86
  switch (chosen_capability()) {
    case Capability::kAvx512: return kernels_avx512();
    case Capability::kAvx2: return kernels_avx2();
    default: break;
  }
#elif defined(__aarch64__)
  if (chosen_capability() == Capability::kNeon) return kernels_neon();
#endif
  return kernels_generic();
}

const KernelsOfBFloat16& chosen_kernels_bf16() {
#ifdef DENDNORM_X86
  switch (chosen_capability()) {
    case Capability::kAvx512: return multiplies_bfloat16() ? kernels_avx512_dot() : kernels_avx512_bf16();
    case Capability::kAvx2: return kernels_avx2_bf16();
    default: break;
  }
#elif defined(__aarch64__)
  if (chosen_capability() == Capability::kNeon) return kernels_neon_bf16();
#endif
  return kernels_generic_bf16();
}

}  // namespace dendnorm::cpu
