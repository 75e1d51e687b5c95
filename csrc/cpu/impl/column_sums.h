// The inner loop of the pass over the columns.
#pragma once

#include "cpu/impl/base.h"
#include "cpu/impl/samples.h"

namespace {

// Up to four connections: each loads its row of dY once, for dX and for its own gradient, whose sums over the samples
// are returned half done.
template <class Vec, int NV, int G, bool kDx, bool kDw, int kChains, class S>
DENDNORM_INLINE auto column_fold(const S* slab, const i32* row, const typename Vec::Scalar* w,
                                 const Samples<Vec, NV, S>& x, typename Vec::V (*acc)[NV]) {
  constexpr i64 kWidth = Vec::kLanes * NV;
  typename Vec::V part[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    if (g >= G) {
      part[g] = Vec::zero();
      continue;
    }
    Samples<Vec, NV, S> dy;
    dy.load(slab + row[g] * kWidth);
    if constexpr (kDx) {
      const auto wv = Vec::set1(w[g]);
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) acc[g % kChains][t] = Vec::fma(wv, dy.wide(t), acc[g % kChains][t]);
    }
    if constexpr (kDw) part[g] = Samples<Vec, NV, S>::dot(x, dy);
  }
  if constexpr (kDw) {
    return Vec::fold(part);
  } else {
    return 0;
  }
}

// The last one to three connections of a column.
template <class Vec, int NV, int G, bool kDx, bool kDw, int kChains, class S>
DENDNORM_INLINE void column_rest(const S* slab, const i32* row, const typename Vec::Scalar* w,
                                 const Samples<Vec, NV, S>& x, typename Vec::V (*acc)[NV],
                                 typename Vec::Scalar* gradient, bool add) {
  const auto folded = column_fold<Vec, NV, G, kDx, kDw, kChains>(slab, row, w, x, acc);
  if constexpr (kDw) {
    typename Vec::Scalar sums[4];
    Vec::put4(folded, sums, false);
#pragma GCC unroll 3
    for (int g = 0; g < G; ++g) gradient[g] = add ? gradient[g] + sums[g] : sums[g];
  }
}

// The connections of a column: acc += w dY, for dX, and gradient = (or +=, with `add`) the sum over the samples of x
// dY. dX is the sum of the chains.
template <class Vec, int NV, bool kDx, bool kDw, class S>
struct ColumnSums {
  static constexpr int kChains = NV == 1 ? 2 : 1;  // hide the latency of the sum

  static DENDNORM_INLINE void run(const S* slab, const i32* row, const typename Vec::Scalar* values,
                                  typename Vec::Scalar* gradient, i64 begin, i64 end, const Samples<Vec, NV, S>& x,
                                  typename Vec::V (*acc)[NV], bool add) {
    i64 k = begin;
    if constexpr (Vec::kFolds > 1) {
      constexpr int kFolds = Vec::kFolds;
      for (; k + 4 * kFolds <= end; k += 4 * kFolds) {
        decltype(column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row, values, x, acc)) folded[kFolds];
#pragma GCC unroll 4
        for (int f = 0; f < kFolds; ++f) {
          const i64 from = k + 4 * f;
          folded[f] = column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row + from, values + from, x, acc);
        }
        if constexpr (kDw) Vec::put(folded, gradient + k, add);
      }
    }
    for (; k + 4 <= end; k += 4) {
      const auto folded = column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row + k, values + k, x, acc);
      if constexpr (kDw) Vec::put4(folded, gradient + k, add);
    }
    typename Vec::Scalar* rest = kDw ? gradient + k : nullptr;
    switch (end - k) {
      case 3: column_rest<Vec, NV, 3, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, add); break;
      case 2: column_rest<Vec, NV, 2, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, add); break;
      case 1: column_rest<Vec, NV, 1, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, add); break;
      default: break;
    }
  }
};

}  // namespace
