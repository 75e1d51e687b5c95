// Which instruction set the kernels use: the best that this processor has, or what the environment lowers it to.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace dendnorm::cpu {

enum class Capability { kDefault, kNeon, kAvx2, kAvx512 };

// Chosen once. DENDNORM_CPU_CAPABILITY, or else ATEN_CPU_CAPABILITY, set to default or to another that this processor
// has, lowers it.
Capability chosen_capability();

// Whether the processor multiplies bfloat16 numbers in pairs, beside AVX-512.
bool multiplies_bfloat16();

// Bytes of a core's second-level cache: what the system says, within 256 KiB and 2 MiB; 1 MiB where it says nothing.
std::int64_t second_level_cache();

// "default", "neon", "avx2" or "avx512". Visible, for the Python module tells it.
DENDNORM_VISIBLE const char* capability();

}  // namespace dendnorm::cpu
