// Binary searches, and which segment a position of a compressed view belongs to.
#pragma once

#include <type_traits>

#include "cuda/launch.h"

namespace dendnorm::cuda {
namespace {

// The first of [first, end) for which after(i) holds; `after` must stay true once it is.
template <class I = i64, class After>
__device__ __forceinline__ I first_of(std::type_identity_t<I> first, std::type_identity_t<I> end, const After& after) {
  while (first < end) {
    const I middle = first + (end - first) / 2;
    if (after(middle)) {
      end = middle;
    } else {
      first = middle + 1;
    }
  }
  return first;
}

// The segment of position k in a sound pattern: the last that begins at or before k. Of several that begin at the same
// place the others are empty.
template <class I>
__device__ __forceinline__ I segment_of(const i32* start, I segments, std::type_identity_t<I> k) {
  I low = 0, high = segments;  // start[low] <= k < start[high]
  while (high - low > 1) {
    const I middle = low + (high - low) / 2;
    if (static_cast<I>(__ldg(start + middle)) <= k) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace
}  // namespace dendnorm::cuda
