// One pass over the column view: dX = dY W, G_k = sum over the batch of dY[., row_k] X[., col_k], and what follows.
#pragma once

#include "cpu/impl/base.h"
#include "cpu/impl/column_sums.h"
#include "cpu/impl/pack.h"
#include "cpu/impl/samples.h"

namespace {

template <class T>
inline double dot(const T* x, const T* y, i64 count) {
  double sums[8] = {};
  i64 k = 0;
  for (; k + 8 <= count; k += 8) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sums[u] += static_cast<double>(x[k + u]) * y[k + u];
  }
  for (; k < count; ++k) sums[0] += static_cast<double>(x[k]) * y[k];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// After the last tile: what the column's gradients still need.
template <class T>
DENDNORM_INLINE void finish_column(const Columns<T>& c, i64 j) {
  const i64 begin = c.columns.start[j], end = c.columns.start[j + 1];
  if (c.row_scale != nullptr) {
    if (c.dots != nullptr) c.dots[j] = dot(c.gradient + begin, c.values + begin, end - begin);
    if (c.finish && c.scale != T(1)) {
      for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.scale;
    }
    return;
  }
  if (c.dots != nullptr) {
    double sum = 0;
    for (i64 k = begin; k < end; ++k) {
      sum += c.dot_weights[c.columns.index[k]] * (static_cast<double>(c.gradient[k]) * c.values[k]);
    }
    c.dots[j] = sum;
  }
  if (c.finish && c.factors.first != nullptr) {
    for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.factors.first[c.columns.index[k]];
    if (c.factors.second != nullptr) {
      for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.factors.second[c.columns.index[k]];
    }
  }
}

template <class Vec, int NV, bool kDx, bool kDw, class S>
inline void columns_tile(const Columns<typename Vec::Scalar>& c, const S* slab, const typename Vec::Scalar* values,
                         typename Vec::Scalar* gradient, i64 sample, i64 samples, i64 begin, i64 end, i64 step,
                         bool first, bool last) {
  using T = typename Vec::Scalar;
  using Sums = ColumnSums<Vec, NV, kDx, kDw, S>;
  constexpr i64 kWidth = Vec::kLanes * NV;
  constexpr int kChains = Sums::kChains;
  alignas(kAlign) S x_block[kDw ? kBlock * kWidth : 1];
  alignas(kAlign) T dx_block[kDx ? kBlock * kWidth : 1];
  const S* x_rows = kDw ? rows_in_place<S>(c.x, sample, samples, kWidth) : nullptr;
  T* dx_rows = kDx ? rows_in_place<T>(c.dx, sample, samples, kWidth) : nullptr;
  for (i64 j0 = begin; j0 < end; j0 += step) {
    const i64 count = smaller(step, end - j0);
    if (kDw && x_rows == nullptr) pack(c.x, sample, samples, j0, count, x_block, kWidth);
    for (i64 r = 0; r < count; ++r) {
      const i64 j = j0 + r;
      Samples<Vec, NV, S> x;
      typename Vec::V acc[kChains][NV];
      if constexpr (kDw) x.load(x_rows != nullptr ? x_rows + j * c.x.stride : x_block + r * kWidth);
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) {
#pragma GCC unroll 2
        for (int u = 0; u < kChains; ++u) acc[u][t] = Vec::zero();
      }
      Sums::run(slab, c.columns.index, values, gradient, c.columns.start[j], c.columns.start[j + 1], x, acc, !first);
      if constexpr (kDx) {
        T* out = dx_rows != nullptr ? dx_rows + j * c.dx.stride : dx_block + r * kWidth;
        typename Vec::V sums[NV];
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) {
          sums[t] = kChains == 2 ? Vec::add(acc[0][t], acc[kChains - 1][t]) : acc[0][t];
          if (c.row_scale != nullptr) sums[t] = Vec::mul(sums[t], Vec::set1(c.scale));
        }
        Samples<Vec, NV, S>::put_in_order(sums);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) Vec::store(out + t * Vec::kLanes, sums[t]);
      }
      if constexpr (kDw) {
        if (last) finish_column(c, j);
      }
    }
    if (kDx && dx_rows == nullptr) unpack(dx_block, kWidth, c.dx, sample, samples, j0, count);
  }
}

// One sample: dy is loaded once for both of a connection's products, as in the tiles.
template <class T, bool kDx, bool kDw>
inline T column_single(const T* dy, const i32* row, const T* values, T x, T* gradient, i64 begin, i64 end) {
  T sums[4] = {};
  const auto step = [&](i64 k, T& sum) {
    const T d = dy[row[k]];
    if constexpr (kDw) gradient[k] = x * d;
    if constexpr (kDx) sum += values[k] * d;
  };
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(k + u, sums[u]);
  }
  for (; k < end; ++k) step(k, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T, bool kDx, bool kDw>
inline void columns_single(const Columns<T>& c, const T* dy, const T* values, i64 begin, i64 end) {
  T x_block[kBlock], dx_block[kBlock];
  for (i64 j0 = begin; j0 < end; j0 += kBlock) {
    const i64 count = smaller(kBlock, end - j0);
    if constexpr (kDw) pack(c.x, 0, 1, j0, count, x_block, 1);
    for (i64 r = 0; r < count; ++r) {
      const i64 from = c.columns.start[j0 + r], to = c.columns.start[j0 + r + 1];
      dx_block[r] =
          column_single<T, kDx, kDw>(dy, c.columns.index, values, kDw ? x_block[r] : T(0), c.gradient, from, to);
      if (c.row_scale != nullptr) dx_block[r] *= c.scale;
      if constexpr (kDw) finish_column(c, j0 + r);
    }
    if constexpr (kDx) unpack(dx_block, 1, c.dx, 0, 1, j0, count);
  }
}

// What one tile of dY gives over a range of columns. `first` writes its part of the gradient, others add theirs; `last`
// finishes the gradient.
template <class T, class S, bool kDx, bool kDw>
void columns_range(const Columns<T>& c, const ColumnsPlan& plan, i64 t, const S* slab, const T* values, T* gradient,
                   i64 begin, i64 end, bool first, bool last) {
  const int width = plan.tiles.width_of(t);
  if constexpr (sizeof(S) == sizeof(T)) {
    if (width == 1) return columns_single<T, kDx, kDw>(c, slab, values, begin, end);
  }
  const i64 sample = plan.tiles.begin(t), samples = plan.tiles.samples_of(t);
  Isa<S>::with_width(width, [&]<class Vec, int NV>() {
    columns_tile<Vec, NV, kDx, kDw, S>(c, slab, values, gradient, sample, samples, begin, end, plan.block, first, last);
  });
}

// The variant that computes what is wanted; null where that is only the sums for the bias.
template <class T, class S>
auto columns_range_for(const Columns<T>& c) {
  const bool dx = c.dx.data != nullptr, dw = c.gradient != nullptr;
  return dx && dw ? columns_range<T, S, true, true>
         : dx     ? columns_range<T, S, true, false>
         : dw     ? columns_range<T, S, false, true>
                  : nullptr;
}

template <class T, class S>
inline T sum_of(const S* values, i64 count) {
  T sums[8] = {};
  i64 k = 0;
  for (; k + 8 <= count; k += 8) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sums[u] += read_as<S, T>(values[k + u]);
  }
  for (; k < count; ++k) sums[0] += read_as<S, T>(values[k]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Rows of a tile of dY: packed into `slab` unless they lie there, their sums unless those are null, and their scale,
// which 16 bits could not hold.
template <class T, class S>
void prepare_rows(const Columns<T>& c, const ColumnsPlan& plan, i64 t, i64 begin, i64 end, S* slab, T* sums) {
  const i64 width = plan.tiles.width_of(t), step = plan.packing.step;
  for (i64 i0 = begin; i0 < end; i0 += step) {
    const i64 i1 = smaller(i0 + step, end);
    if (!plan.in_place) pack_tile(c.dy, plan.tiles, t, i0, i1, step, slab);
    if (sums != nullptr) {
      for (i64 i = i0; i < i1; ++i) sums[t * c.outputs + i] = sum_of<T>(slab + i * width, width);
    }
    if constexpr (sizeof(S) == sizeof(T)) {
      for (i64 i = i0; i < i1 && c.row_scale != nullptr; ++i) {
        const T scale = c.row_scale[i];
        for (i64 b = i * width; b < (i + 1) * width; ++b) slab[b] *= scale;
      }
    }
  }
}

// The gradient of a range of columns, from the sums of all groups. Those of the first are there already.
template <class T>
void add_groups(const Columns<T>& c, const ColumnsPlan& plan, const T* gradients, i64 begin, i64 end) {
  for (i64 j0 = begin; j0 < end; j0 += kGrain) {
    const i64 j1 = smaller(j0 + kGrain, end);
    for (int g = 1; g < plan.groups; ++g) {
      const T* sums = gradients + (g - 1) * plan.distance;
      for (i64 k = c.columns.start[j0]; k < c.columns.start[j1]; ++k) c.gradient[k] += sums[k];
    }
    for (i64 j = j0; j < j1; ++j) finish_column(c, j);
  }
}

// Values times the factors of their rows.
template <class T>
void scale_values(const Columns<T>& c, i64 begin, i64 end, T* scaled) {
  const i32* row = c.columns.index;
  for (i64 k = begin; k < end; ++k) scaled[k] = c.values[k] * c.factors.first[row[k]];
  if (c.factors.second != nullptr) {
    for (i64 k = begin; k < end; ++k) scaled[k] *= c.factors.second[row[k]];
  }
}

// What no tile gives.
template <class T>
void clear_gradients(const Columns<T>& c) {
  for (i64 k = 0; c.gradient != nullptr && k < c.connections; ++k) c.gradient[k] = 0;
  for (i64 j = 0; c.dots != nullptr && j < c.inputs; ++j) c.dots[j] = 0;
}

// The gradient of a range of the bias, from the sums of every tile.
template <class T>
void add_tiles(const Columns<T>& c, i64 tiles, const T* sums, i64 begin, i64 end) {
  for (i64 i = begin; i < end; ++i) {
    T sum = 0;
    for (i64 t = 0; t < tiles; ++t) sum += sums[t * c.outputs + i];
    c.bias_gradient[i] = sum;
  }
}

// S is what the slabs of dY hold, and the rows of X.
template <class T, class S = T>
void columns(const Columns<T>& c, const ColumnsPlan& plan, std::byte* workspace) {
  const Tiles& tiles = plan.tiles;
  const int threads = plan.threads;
  const bool scale = plan.scaled.bytes > 0, alone = plan.sharing.alone;
  S* slabs = plan.in_place ? static_cast<S*>(c.dy.data) : in_region<S>(workspace, plan.slabs);
  T* scaled = in_region<T>(workspace, plan.scaled);
  T* sums = c.bias_gradient != nullptr ? in_region<T>(workspace, plan.sums) : nullptr;
  T* gradients = in_region<T>(workspace, plan.gradients);
  const bool visit = !plan.in_place || sums != nullptr;

  auto prepare = [&](i64 begin, i64 end) {
    if (scale) {
      scale_values(c, share_begin(c.connections, begin, threads), share_begin(c.connections, end, threads), scaled);
    }
    for_pieces(plan.packing, c.outputs, begin, end, threads, [&](i64 t, i64 from, i64 to) {
      prepare_rows(c, plan, t, from, to, slabs + tiles.begin(t) * c.outputs, sums);
    });
  };
  if (plan.packing.pieces > 0 || scale) in_threads(c.threads, threads, prepare);

  const T* values = scale ? scaled : c.values;
  const auto range = columns_range_for<T, S>(c);
  const i64 parts = plan.sharing.parts, items = parts * plan.groups;
  auto compute = [&](i64 begin, i64 end) {
    S* own = alone && !plan.in_place ? slabs + begin * tiles.room(c.outputs) : nullptr;
    const i64 first = share_begin(items, begin, threads), last = share_begin(items, end, threads);
    for (i64 item = first; item < last; ++item) {
      const i64 group = item / parts, part = item % parts;
      const i64 from = part_begin(c.columns.start, c.inputs, part, parts);
      const i64 to = part_begin(c.columns.start, c.inputs, part + 1, parts);
      T* gradient = group == 0 ? c.gradient : gradients + (group - 1) * plan.distance;
      const i64 first_tile = plan.first_tile(group), end_tile = plan.first_tile(group + 1);
      for (i64 t = first_tile; t < end_tile; ++t) {
        S* slab = own != nullptr ? own : slabs + tiles.begin(t) * c.outputs;
        if (alone && visit && plan.sharing.packs(item, first)) {
          prepare_rows(c, plan, t, 0, c.outputs, slab, part == 0 ? sums : nullptr);
        }
        if (range == nullptr) continue;
        range(c, plan, t, slab, values, gradient, from, to, t == first_tile, plan.groups == 1 && t + 1 == end_tile);
      }
    }
  };
  in_threads(c.threads, threads, compute);

  if (c.gradient != nullptr && plan.groups > 1) {
    auto add = [&](i64 begin, i64 end) {
      add_groups(c, plan, gradients, part_begin(c.columns.start, c.inputs, begin, threads),
                 part_begin(c.columns.start, c.inputs, end, threads));
    };
    in_threads(c.threads, threads, add);
  }
  if (tiles.count() == 0) clear_gradients(c);
  if (c.bias_gradient != nullptr) {
    auto add = [&](i64 begin, i64 end) {
      add_tiles(c, tiles.count(), sums, share_begin(c.outputs, begin, threads), share_begin(c.outputs, end, threads));
    };
    if (c.outputs * tiles.count() < kEndWork) {
      add(0, threads);
    } else {
      in_threads(c.threads, threads, add);
    }
  }
}

}  // namespace
