// The 16-bit types by their bits, for the kernels of both devices. Internal linkage, for the reason given in
// cpu/impl/base.h.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

DENDNORM_HD inline float float_of_bits(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

DENDNORM_HD inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

DENDNORM_HD inline float to_float(BFloat16 x) { return float_of_bits(static_cast<std::uint32_t>(x.bits) << 16); }

DENDNORM_HD inline float to_float(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const std::uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, fraction = x.bits & 0x3ffu;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // subnormal or zero
  return sign != 0 ? -tiny : tiny;
#endif
}

template <class A>
DENDNORM_HD A from_float(float value);

// To nearest, ties to even.
template <>
DENDNORM_HD inline BFloat16 from_float<BFloat16>(float value) {
  const std::uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
DENDNORM_HD inline Float16 from_float<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return {bits};
#else
  const std::uint32_t bits = bits_of_float(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (size >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (size < 0x38800000u) {                            // a subnormal result: let the addition round
    const float shifted = float_of_bits(size) + 0.5f;  // the last bit of 0.5f is worth 2^-24
    return {static_cast<std::uint16_t>(sign | (bits_of_float(shifted) - bits_of_float(0.5f)))};
  }
  const std::uint32_t rounded = size + 0xfffu + ((size >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

}  // namespace
