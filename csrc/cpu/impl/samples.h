// A row of a slab in registers, by the type that the slab holds: NV vectors of samples in Vec::Scalar.
#pragma once

#include "cpu/impl/base.h"

namespace {

// In the type that is computed with.
template <class Vec, int NV, class S>
struct Samples {
  typename Vec::V v[NV];

  DENDNORM_INLINE void load(const S* p) {
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) v[t] = Vec::load(p + t * Vec::kLanes);
  }
  DENDNORM_INLINE typename Vec::V wide(int t) const { return v[t]; }
  // Vectors of products, whose sum is that over the samples.
  static DENDNORM_INLINE typename Vec::V dot(const Samples& x, const Samples& y) {
    auto sum = Vec::mul(x.v[0], y.v[0]);
#pragma GCC unroll 8
    for (int t = 1; t < NV; ++t) sum = Vec::fma(x.v[t], y.v[t], sum);
    return sum;
  }
  // Vectors that were computed from wide(t), in the order of the samples.
  static DENDNORM_INLINE void put_in_order(typename Vec::V*) {}
};

// In 16 bits: half as many bytes for each connection. A vector of bits is two of samples, the even and the odd ones, by
// a shift and by a mask.
template <class Vec, int NV>
struct Samples<Vec, NV, BFloat16> {
  static_assert(NV % 2 == 0);
  typename Vec::Bits b[NV / 2];

  DENDNORM_INLINE void load(const BFloat16* p) {
#pragma GCC unroll 8
    for (int t = 0; t < NV / 2; ++t) b[t] = Vec::load_bits(p + 2 * t * Vec::kLanes);
  }
  DENDNORM_INLINE typename Vec::V wide(int t) const { return t % 2 == 0 ? Vec::even(b[t / 2]) : Vec::odd(b[t / 2]); }
  static DENDNORM_INLINE typename Vec::V dot(const Samples& x, const Samples& y) {
    auto sum = Vec::zero();
#pragma GCC unroll 8
    for (int t = 0; t < NV / 2; ++t) sum = Vec::dot(x.b[t], y.b[t], sum);
    return sum;
  }
  static DENDNORM_INLINE void put_in_order(typename Vec::V* v) {
#pragma GCC unroll 8
    for (int t = 0; t < NV; t += 2) Vec::interleave(v[t], v[t + 1]);
  }
};

}  // namespace
