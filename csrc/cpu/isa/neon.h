// The vectors of aarch64, which every such processor has: 128 bits, in 32 registers.
#pragma once

#include <arm_neon.h>

#include "cpu/impl/base.h"

namespace {

struct F4 {
  using Scalar = float;
  using V = float32x4_t;
  static constexpr int kLanes = 4;
  static V load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, V x) { vst1q_f32(p, x); }
  static V zero() { return vdupq_n_f32(0); }
  static V set1(float x) { return vdupq_n_f32(x); }
  static V mul(V x, V y) { return vmulq_f32(x, y); }
  static V add(V x, V y) { return vaddq_f32(x, y); }
  static V fma(V x, V y, V z) { return vfmaq_f32(z, x, y); }
  // Of four vectors: their sums.
  static V fold(const V* p) { return vpaddq_f32(vpaddq_f32(p[0], p[1]), vpaddq_f32(p[2], p[3])); }
  static void put4(V folded, float* out, bool add) { vst1q_f32(out, add ? vaddq_f32(vld1q_f32(out), folded) : folded); }
  static constexpr int kFolds = 1;

  using Bits = uint32x4_t;
  static Bits load_bits(const BFloat16* p) {
    return vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)));
  }
  static V even(Bits b) { return vreinterpretq_f32_u32(vshlq_n_u32(b, 16)); }
  static V odd(Bits b) { return vreinterpretq_f32_u32(vandq_u32(b, vdupq_n_u32(0xffff0000u))); }
  static V dot(Bits x, Bits y, V sum) { return fma(odd(x), odd(y), fma(even(x), even(y), sum)); }
  static void interleave(V& x, V& y) {
    const V low = vzip1q_f32(x, y);
    y = vzip2q_f32(x, y);
    x = low;
  }
};

struct D2 {
  using Scalar = double;
  using V = float64x2_t;
  static constexpr int kLanes = 2;
  static V load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, V x) { vst1q_f64(p, x); }
  static V zero() { return vdupq_n_f64(0); }
  static V set1(double x) { return vdupq_n_f64(x); }
  static V mul(V x, V y) { return vmulq_f64(x, y); }
  static V add(V x, V y) { return vaddq_f64(x, y); }
  static V fma(V x, V y, V z) { return vfmaq_f64(z, x, y); }
  struct Sums {
    V of[2];
  };
  static Sums fold(const V* p) { return {{vpaddq_f64(p[0], p[1]), vpaddq_f64(p[2], p[3])}}; }
  static void put4(const Sums& sums, double* out, bool add) {
    vst1q_f64(out, add ? vaddq_f64(vld1q_f64(out), sums.of[0]) : sums.of[0]);
    vst1q_f64(out + 2, add ? vaddq_f64(vld1q_f64(out + 2), sums.of[1]) : sums.of[1]);
  }
  static constexpr int kFolds = 1;
};

template <>
struct Square<float> {
  static constexpr int kSide = 4;
  using Row = float32x4_t;
  static Row zero() { return vdupq_n_f32(0); }
  static Row load(const float* p) { return vld1q_f32(p); }
  static Row load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static Row load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static void store(float* p, Row x) { vst1q_f32(p, x); }
  static void store(Float16* p, Row x) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
  }
  static void store(BFloat16* p, Row x) {
    // As from_float: to nearest, ties to even, and a NaN stays one.
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t size = vandq_u32(bits, vdupq_n_u32(0x7fffffff));
    const uint32x4_t is_nan = vcgtq_u32(size, vdupq_n_u32(0x7f800000));  // no float comparison: it might flush
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(vbslq_u32(is_nan, quiet, up), 16));
  }
  static void transpose(Row* r) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }
};

template <>
struct Square<double> {
  static constexpr int kSide = 2;
  using Row = float64x2_t;
  static Row zero() { return vdupq_n_f64(0); }
  static Row load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, Row x) { vst1q_f64(p, x); }
  static void transpose(Row* r) {
    const Row first = vtrn1q_f64(r[0], r[1]);
    r[1] = vtrn2q_f64(r[0], r[1]);
    r[0] = first;
  }
};

template <>
struct Square<BFloat16> {
  static constexpr int kSide = 8;
  using Row = uint16x8_t;
  static Row zero() { return vdupq_n_u16(0); }
  static Row load(const BFloat16* p) { return vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)); }
  static void store(BFloat16* p, Row x) { vst1q_u16(reinterpret_cast<std::uint16_t*>(p), x); }
  static void transpose(Row* r) {
    uint32x4_t a[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      a[i] = vreinterpretq_u32_u16(vtrn1q_u16(r[i], r[i + 1]));
      a[i + 1] = vreinterpretq_u32_u16(vtrn2q_u16(r[i], r[i + 1]));
    }
    uint64x2_t b[8];  // b[4 g + c]: columns c and c + 4 of the four rows from 4 g on
#pragma GCC unroll 2
    for (int g = 0; g < 8; g += 4) {
      b[g] = vreinterpretq_u64_u32(vtrn1q_u32(a[g], a[g + 2]));
      b[g + 1] = vreinterpretq_u64_u32(vtrn1q_u32(a[g + 1], a[g + 3]));
      b[g + 2] = vreinterpretq_u64_u32(vtrn2q_u32(a[g], a[g + 2]));
      b[g + 3] = vreinterpretq_u64_u32(vtrn2q_u32(a[g + 1], a[g + 3]));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      r[c] = vreinterpretq_u16_u64(vtrn1q_u64(b[c], b[c + 4]));
      r[c + 4] = vreinterpretq_u16_u64(vtrn2q_u64(b[c], b[c + 4]));
    }
  }
};

}  // namespace
