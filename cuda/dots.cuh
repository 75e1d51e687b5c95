// Dot products over samples that lanes share: each adds up its own, and then they exchange halves of their sums until
// each has whole ones.
#pragma once

#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

template <class A, class T>
__device__ __forceinline__ T dot(const Piece<A>& a, const Piece<A>& b, T sum) {
  T x[Piece<A>::kCount], y[Piece<A>::kCount];
  a.unpack(x);
  b.unpack(y);
#pragma unroll
  for (int i = 0; i < Piece<A>::kCount; ++i) sum = multiply_add(x[i], y[i], sum);
  return sum;
}

// One step of the exchange between lanes `kStep` apart, of `kHeld` sums each; returns the lane's first of those kept.
template <int kStep, int kHeld, class T, int kOwn>
__device__ __forceinline__ int exchange(T (&sum)[kOwn], int lane) {
  if constexpr (kStep == 0) {
    return 0;
  } else if constexpr (kHeld == 1) {
    sum[0] += __shfl_xor_sync(kFullMask, sum[0], kStep);
    return exchange<kStep / 2, 1>(sum, lane);
  } else {
    constexpr int kHalf = kHeld / 2;
    const bool upper = (lane & kStep) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T given = upper ? sum[i] : sum[i + kHalf], kept = upper ? sum[i + kHalf] : sum[i];
      sum[i] = kept + __shfl_xor_sync(kFullMask, given, kStep);
    }
    return (upper ? kHalf : 0) + exchange<kStep / 2, kHalf>(sum, lane);
  }
}

// What a lane has after exchange<kLanes / 2, kOwn>: so many whole sums, the same as so many lanes beside it.
DENDNORM_HD constexpr int held_sums(int lanes, int own) { return own > lanes ? own / lanes : 1; }
DENDNORM_HD constexpr int holding_lanes(int lanes, int own) { return lanes > own ? lanes / own : 1; }

}  // namespace
}  // namespace dendnorm::cuda
