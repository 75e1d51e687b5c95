// GCC 12 warns about its own header's _mm*_undefined_*(), wherever the warning's place is after inlining.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.h"
#include "core/float16.h"

#include "cpu/avx2_impl.h"

namespace {

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr int kWidth = 32;
  static constexpr int kColumnsWidth = 64;
};
template <>
struct Limits<double> {
  static constexpr int kWidth = 32;
  static constexpr int kColumnsWidth = 32;
};

struct F16 {
  using Scalar = float;
  using V = __m512;
  static constexpr int kLanes = 16;
  static V load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, V x) { _mm512_store_ps(p, x); }
  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  static V mul(V x, V y) { return _mm512_mul_ps(x, y); }
  static V add(V x, V y) { return _mm512_add_ps(x, y); }
  static V fma(V x, V y, V z) { return _mm512_fmadd_ps(x, y, z); }
  static __m256 halves(V x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
  static float sum(V x) { return F8::sum(halves(x)); }
  // Of four vectors: their sums within each 128-bit quarter.
  static V sums4(const V* p) {
    const V a = _mm512_add_ps(_mm512_unpacklo_ps(p[0], p[1]), _mm512_unpackhi_ps(p[0], p[1]));
    const V b = _mm512_add_ps(_mm512_unpacklo_ps(p[2], p[3]), _mm512_unpackhi_ps(p[2], p[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  static void reduce4(const V* p, float* out, bool add) {
    const __m128 s = F8::halves(halves(sums4(p)));
    _mm_storeu_ps(out, add ? _mm_add_ps(_mm_loadu_ps(out), s) : s);
  }
  static void reduce8(const V* p, float* out, bool add) {
    const V a = sums4(p), b = sums4(p + 4);
    const V c = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m256 low = _mm512_castps512_ps256(c), high = _mm512_extractf32x8_ps(c, 1);
    const __m256 s = _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
    _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), s) : s);
  }
};

struct D8 {
  using Scalar = double;
  using V = __m512d;
  static constexpr int kLanes = 8;
  static V load(const double* p) { return _mm512_load_pd(p); }
  static void store(double* p, V x) { _mm512_store_pd(p, x); }
  static V zero() { return _mm512_setzero_pd(); }
  static V set1(double x) { return _mm512_set1_pd(x); }
  static V mul(V x, V y) { return _mm512_mul_pd(x, y); }
  static V add(V x, V y) { return _mm512_add_pd(x, y); }
  static V fma(V x, V y, V z) { return _mm512_fmadd_pd(x, y, z); }
  static __m256d halves(V x) { return _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1)); }
  static double sum(V x) { return D4::sum(halves(x)); }
  static void reduce4(const V* p, double* out, bool add) {
    const __m256d folded[4] = {halves(p[0]), halves(p[1]), halves(p[2]), halves(p[3])};
    D4::reduce4(folded, out, add);
  }
  static void reduce8(const V* p, double* out, bool add) {
    reduce4(p, out, add);
    reduce4(p + 4, out + 4, add);
  }
};

template <class F>
void with_width(float, int width, F&& f) {
  switch (width) {
    case 64: return f.template operator()<F16, 4>();
    case 32: return f.template operator()<F16, 2>();
    case 16: return f.template operator()<F16, 1>();
    case 8: return f.template operator()<F8, 1>();
    default: return f.template operator()<F4, 1>();
  }
}

template <class F>
void with_width(double, int width, F&& f) {
  switch (width) {
    case 32: return f.template operator()<D8, 4>();
    case 16: return f.template operator()<D8, 2>();
    case 8: return f.template operator()<D8, 1>();
    default: return f.template operator()<D4, 1>();
  }
}

}  // namespace

#include "cpu/kernels_impl.h"

namespace dendnorm::cpu {
const Kernels& kernels_avx512() { return table; }
}  // namespace dendnorm::cpu
