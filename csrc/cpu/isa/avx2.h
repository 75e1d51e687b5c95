// 256- and 128-bit vectors and the 8 x 8 transpose, for avx2.cpp and for avx512.cpp.
#pragma once

#include <immintrin.h>

#include "cpu/impl/base.h"

namespace {

struct F4 {
  using Scalar = float;
  using V = __m128;
  static constexpr int kLanes = 4;
  static V load(const float* p) { return _mm_load_ps(p); }
  static void store(float* p, V x) { _mm_store_ps(p, x); }
  static V zero() { return _mm_setzero_ps(); }
  static V set1(float x) { return _mm_set1_ps(x); }
  static V mul(V x, V y) { return _mm_mul_ps(x, y); }
  static V add(V x, V y) { return _mm_add_ps(x, y); }
  static V fma(V x, V y, V z) { return _mm_fmadd_ps(x, y, z); }
  // Of four vectors: their sums.
  static V fold(const V* p) {
    const V a = _mm_add_ps(_mm_unpacklo_ps(p[0], p[1]), _mm_unpackhi_ps(p[0], p[1]));
    const V b = _mm_add_ps(_mm_unpacklo_ps(p[2], p[3]), _mm_unpackhi_ps(p[2], p[3]));
    return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  }
  static void put4(V folded, float* out, bool add) {
    _mm_storeu_ps(out, add ? _mm_add_ps(_mm_loadu_ps(out), folded) : folded);
  }
  static constexpr int kFolds = 1;

  using Bits = __m128i;
  static Bits load_bits(const BFloat16* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static V even(Bits b) { return _mm_castsi128_ps(_mm_slli_epi32(b, 16)); }
  static V odd(Bits b) { return _mm_castsi128_ps(_mm_and_si128(b, _mm_set1_epi32(-65536))); }
  static V dot(Bits x, Bits y, V sum) { return fma(odd(x), odd(y), fma(even(x), even(y), sum)); }
  static void interleave(V& x, V& y) {
    const V low = _mm_unpacklo_ps(x, y);
    y = _mm_unpackhi_ps(x, y);
    x = low;
  }
};

struct F8 {
  using Scalar = float;
  using V = __m256;
  static constexpr int kLanes = 8;
  static V load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, V x) { _mm256_store_ps(p, x); }
  static V zero() { return _mm256_setzero_ps(); }
  static V set1(float x) { return _mm256_set1_ps(x); }
  static void set4(const float* p, V* out) {
    const V quad = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    out[0] = _mm256_permute_ps(quad, 0x00);
    out[1] = _mm256_permute_ps(quad, 0x55);
    out[2] = _mm256_permute_ps(quad, 0xaa);
    out[3] = _mm256_permute_ps(quad, 0xff);
  }
  static V mul(V x, V y) { return _mm256_mul_ps(x, y); }
  static V add(V x, V y) { return _mm256_add_ps(x, y); }
  static V fma(V x, V y, V z) { return _mm256_fmadd_ps(x, y, z); }
  static __m128 halves(V x) { return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); }
  // Of two vectors: a sum of two values of the first in one half of each half, and of the second in the other.
  static V pairs(V x, V y) { return _mm256_add_ps(_mm256_blend_ps(x, y, 0xcc), _mm256_shuffle_ps(x, y, 0x4e)); }
  // Of four vectors: their sums within each 128-bit half.
  static V fold(const V* p) {
    const V a = pairs(p[0], p[1]), b = pairs(p[2], p[3]);
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
  }
  static void put4(V folded, float* out, bool add) { F4::put4(halves(folded), out, add); }
  static constexpr int kFolds = 2;
  static void put(const V* folded, float* out, bool add) {
    const V s =
        _mm256_add_ps(_mm256_blend_ps(folded[0], folded[1], 0xf0), _mm256_permute2f128_ps(folded[0], folded[1], 0x21));
    _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), s) : s);
  }

  using Bits = __m256i;
  static Bits load_bits(const BFloat16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static V even(Bits b) { return _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)); }
  static V odd(Bits b) { return _mm256_castsi256_ps(_mm256_and_si256(b, _mm256_set1_epi32(-65536))); }
  static V dot(Bits x, Bits y, V sum) { return fma(odd(x), odd(y), fma(even(x), even(y), sum)); }
  static void interleave(V& x, V& y) {
    const V low = _mm256_unpacklo_ps(x, y), high = _mm256_unpackhi_ps(x, y);
    x = _mm256_permute2f128_ps(low, high, 0x20);
    y = _mm256_permute2f128_ps(low, high, 0x31);
  }
};

struct D4 {
  using Scalar = double;
  using V = __m256d;
  static constexpr int kLanes = 4;
  static V load(const double* p) { return _mm256_load_pd(p); }
  static void store(double* p, V x) { _mm256_store_pd(p, x); }
  static V zero() { return _mm256_setzero_pd(); }
  static V set1(double x) { return _mm256_set1_pd(x); }
  static V mul(V x, V y) { return _mm256_mul_pd(x, y); }
  static V add(V x, V y) { return _mm256_add_pd(x, y); }
  static V fma(V x, V y, V z) { return _mm256_fmadd_pd(x, y, z); }
  static V fold(const V* p) {
    const V a = _mm256_hadd_pd(p[0], p[1]), b = _mm256_hadd_pd(p[2], p[3]);
    return _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
  }
  static void put4(V folded, double* out, bool add) {
    _mm256_storeu_pd(out, add ? _mm256_add_pd(_mm256_loadu_pd(out), folded) : folded);
  }
  static constexpr int kFolds = 1;
};

template <>
struct Square<float> {
  static constexpr int kSide = 8;
  using Row = __m256;
  static Row zero() { return _mm256_setzero_ps(); }
  static Row load(const float* p) { return _mm256_loadu_ps(p); }
  static Row load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Row load(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void store(float* p, Row x) { _mm256_storeu_ps(p, x); }
  static void store(Float16* p, Row x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store(BFloat16* p, Row x) {
    // As from_float: to nearest, ties to even, and a NaN stays one.
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void transpose(Row* r) {
    const Row a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const Row a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const Row a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const Row a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const Row b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const Row b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const Row b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const Row b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20);
    r[1] = _mm256_permute2f128_ps(b1, b5, 0x20);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20);
    r[3] = _mm256_permute2f128_ps(b3, b7, 0x20);
    r[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
  }
};

template <>
struct Square<BFloat16> {
  static constexpr int kSide = 8;
  using Row = __m128i;
  static Row zero() { return _mm_setzero_si128(); }
  static Row load(const BFloat16* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void store(BFloat16* p, Row x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }
  static void transpose(Row* r) {
    const Row a0 = _mm_unpacklo_epi16(r[0], r[1]), a1 = _mm_unpackhi_epi16(r[0], r[1]);
    const Row a2 = _mm_unpacklo_epi16(r[2], r[3]), a3 = _mm_unpackhi_epi16(r[2], r[3]);
    const Row a4 = _mm_unpacklo_epi16(r[4], r[5]), a5 = _mm_unpackhi_epi16(r[4], r[5]);
    const Row a6 = _mm_unpacklo_epi16(r[6], r[7]), a7 = _mm_unpackhi_epi16(r[6], r[7]);
    const Row b0 = _mm_unpacklo_epi32(a0, a2), b1 = _mm_unpackhi_epi32(a0, a2);
    const Row b2 = _mm_unpacklo_epi32(a1, a3), b3 = _mm_unpackhi_epi32(a1, a3);
    const Row b4 = _mm_unpacklo_epi32(a4, a6), b5 = _mm_unpackhi_epi32(a4, a6);
    const Row b6 = _mm_unpacklo_epi32(a5, a7), b7 = _mm_unpackhi_epi32(a5, a7);
    r[0] = _mm_unpacklo_epi64(b0, b4);
    r[1] = _mm_unpackhi_epi64(b0, b4);
    r[2] = _mm_unpacklo_epi64(b1, b5);
    r[3] = _mm_unpackhi_epi64(b1, b5);
    r[4] = _mm_unpacklo_epi64(b2, b6);
    r[5] = _mm_unpackhi_epi64(b2, b6);
    r[6] = _mm_unpacklo_epi64(b3, b7);
    r[7] = _mm_unpackhi_epi64(b3, b7);
  }
};

template <>
struct Square<double> {
  static constexpr int kSide = 4;
  using Row = __m256d;
  static Row zero() { return _mm256_setzero_pd(); }
  static Row load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Row x) { _mm256_storeu_pd(p, x); }
  static void transpose(Row* r) {
    const Row a0 = _mm256_unpacklo_pd(r[0], r[1]), a1 = _mm256_unpackhi_pd(r[0], r[1]);
    const Row a2 = _mm256_unpacklo_pd(r[2], r[3]), a3 = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a0, a2, 0x20);
    r[1] = _mm256_permute2f128_pd(a1, a3, 0x20);
    r[2] = _mm256_permute2f128_pd(a0, a2, 0x31);
    r[3] = _mm256_permute2f128_pd(a1, a3, 0x31);
  }
};

}  // namespace
