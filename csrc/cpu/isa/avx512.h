// 512-bit vectors, beside those of avx2.h.
#pragma once

// GCC 12 warns about its own header's _mm*_undefined_*(), wherever the warning's place is after inlining.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "cpu/isa/avx2.h"

namespace {

struct F16 {
  using Scalar = float;
  using V = __m512;
  static constexpr int kLanes = 16;
  static V load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, V x) { _mm512_store_ps(p, x); }
  static void stream(float* p, V x) { _mm512_stream_ps(p, x); }
  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  // One load and four shuffles: loads are what bounds the forward pass.
  static void set4(const float* p, V* out) {
    const V quad = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    out[0] = _mm512_permute_ps(quad, 0x00);
    out[1] = _mm512_permute_ps(quad, 0x55);
    out[2] = _mm512_permute_ps(quad, 0xaa);
    out[3] = _mm512_permute_ps(quad, 0xff);
  }
  static V mul(V x, V y) { return _mm512_mul_ps(x, y); }
  static V add(V x, V y) { return _mm512_add_ps(x, y); }
  static V fma(V x, V y, V z) { return _mm512_fmadd_ps(x, y, z); }
  static __m256 halves(V x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
  // Of two vectors: a sum of two values of the first in one half of each quarter, or of the whole, and of the second in
  // the other. A blend runs on any port, a shuffle on two.
  static V pairs(V x, V y) { return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x, y), _mm512_shuffle_ps(x, y, 0x4e)); }
  static V pairs_of_quarters(V x, V y) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x, y), _mm512_shuffle_f32x4(x, y, 0x4e));
  }
  // Of four vectors: their sums within each 128-bit quarter.
  static V fold(const V* p) {
    const V a = pairs(p[0], p[1]), b = pairs(p[2], p[3]);
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
  }
  static void put4(V folded, float* out, bool add) { F4::put4(F8::halves(halves(folded)), out, add); }
  static constexpr int kFolds = 4;
  static void put(const V* folded, float* out, bool add) {
    const V a = pairs_of_quarters(folded[0], folded[1]), b = pairs_of_quarters(folded[2], folded[3]);
    const V s = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), s) : s);
  }

  using Bits = __m512i;
  static Bits load_bits(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static V even(Bits b) { return _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)); }
  static V odd(Bits b) { return _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32(-65536))); }
  static V dot(Bits x, Bits y, V sum) { return fma(odd(x), odd(y), fma(even(x), even(y), sum)); }
  static void interleave(V& x, V& y) {
    const V low = _mm512_unpacklo_ps(x, y), high = _mm512_unpackhi_ps(x, y);  // quarters 0 to 3 of either
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i last = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    x = _mm512_permutex2var_ps(low, first, high);
    y = _mm512_permutex2var_ps(low, last, high);
  }
};

struct D8 {
  using Scalar = double;
  using V = __m512d;
  static constexpr int kLanes = 8;
  static V load(const double* p) { return _mm512_load_pd(p); }
  static void store(double* p, V x) { _mm512_store_pd(p, x); }
  static void stream(double* p, V x) { _mm512_stream_pd(p, x); }
  static V zero() { return _mm512_setzero_pd(); }
  static V set1(double x) { return _mm512_set1_pd(x); }
  static V mul(V x, V y) { return _mm512_mul_pd(x, y); }
  static V add(V x, V y) { return _mm512_add_pd(x, y); }
  static V fma(V x, V y, V z) { return _mm512_fmadd_pd(x, y, z); }
  static __m256d halves(V x) { return _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1)); }
  static D4::V fold(const V* p) {
    const __m256d halved[4] = {halves(p[0]), halves(p[1]), halves(p[2]), halves(p[3])};
    return D4::fold(halved);
  }
  static void put4(D4::V folded, double* out, bool add) { D4::put4(folded, out, add); }
  static constexpr int kFolds = 1;
};

}  // namespace
