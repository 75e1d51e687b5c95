// Y = X W^T + bias.
#pragma once

#include "cpu/impl/base.h"
#include "cpu/impl/pack.h"
#include "cpu/impl/samples.h"

namespace {

// acc[t] = sum over the connections of a row of w times the sample vectors of its inputs.
template <class Vec, int NV, Order kOrder, class S>
struct RowSum {
  template <class Index>
  static DENDNORM_INLINE void run(const S* slab, const Index* index, const i32* perm,
                                  const typename Vec::Scalar* values, i64 begin, i64 end, typename Vec::V* acc) {
    constexpr i64 kWidth = Vec::kLanes * NV;
    constexpr int kFlight = NV == 1 ? 4 : 2;  // connections in flight hide the latency of the sum
    typename Vec::V sums[kFlight][NV];
#pragma GCC unroll 4
    for (int u = 0; u < kFlight; ++u) {
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) sums[u][t] = Vec::zero();
    }
    i64 k = begin;
    for (; k + 4 <= end; k += 4) {
      typename Vec::V w[4];
      if constexpr (kOrder == Order::kFour && requires { Vec::set4(values, w); }) {
        Vec::set4(values + k, w);
      } else {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) w[u] = Vec::set1(values[kOrder == Order::kThrough ? perm[k + u] : k + u]);
      }
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        Samples<Vec, NV, S> x;
        x.load(slab + index[k + u] * kWidth);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) sums[u % kFlight][t] = Vec::fma(w[u], x.wide(t), sums[u % kFlight][t]);
      }
    }
#pragma GCC unroll 3
    for (int u = 0; u < 3; ++u) {
      if (k + u >= end) break;
      Samples<Vec, NV, S> x;
      x.load(slab + index[k + u] * kWidth);
      const auto w = Vec::set1(values[kOrder == Order::kThrough ? perm[k + u] : k + u]);
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) sums[u % kFlight][t] = Vec::fma(w, x.wide(t), sums[u % kFlight][t]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) {
      if constexpr (kFlight == 4) {
        acc[t] = Vec::add(Vec::add(sums[0][t], sums[1][t]), Vec::add(sums[2][t], sums[3][t]));
      } else {
        acc[t] = Vec::add(sums[0][t], sums[1][t]);
      }
    }
    Samples<Vec, NV, S>::put_in_order(acc);
  }
};

template <bool kThrough, class T, class Index>
inline T row_dot(const T* x, const Index* index, const i32* perm, const T* values, i64 begin, i64 end) {
  T sums[4] = {};
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sums[u] += values[kThrough ? perm[k + u] : k + u] * x[index[k + u]];
  }
  for (; k < end; ++k) sums[0] += values[kThrough ? perm[k] : k] * x[index[k]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The output of a row, from its sum.
template <class T>
DENDNORM_INLINE T finished(const Forward<T>& f, i64 i, T sum) {
  if (f.factors.first != nullptr) sum *= f.factors.first[i];
  if (f.factors.second != nullptr) sum *= f.factors.second[i];
  return f.bias != nullptr ? sum + f.bias[i] : sum;
}

template <class Vec, int NV, Order kOrder, class S, class Index>
inline void forward_tile(const Forward<typename Vec::Scalar>& f, const Index* index, const S* slab,
                         const typename Vec::Scalar* values, i64 sample, i64 samples, i64 begin, i64 end, i64 step) {
  using T = typename Vec::Scalar;
  constexpr i64 kWidth = Vec::kLanes * NV;
  alignas(kAlign) T block[kBlock * kWidth];
  T* rows = rows_in_place<T>(f.y, sample, samples, kWidth);
  for (i64 i0 = begin; i0 < end; i0 += step) {
    const i64 count = smaller(step, end - i0);
    for (i64 r = 0; r < count; ++r) {
      const i64 i = i0 + r;
      typename Vec::V acc[NV];
      RowSum<Vec, NV, kOrder, S>::run(slab, index, f.rows.perm, values, f.rows.start[i], f.rows.start[i + 1], acc);
      if (f.factors.first != nullptr) {
        const auto factor = Vec::set1(f.factors.first[i]);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) acc[t] = Vec::mul(acc[t], factor);
        if (f.factors.second != nullptr) {
          const auto second = Vec::set1(f.factors.second[i]);
#pragma GCC unroll 8
          for (int t = 0; t < NV; ++t) acc[t] = Vec::mul(acc[t], second);
        }
      }
      if (f.bias != nullptr) {
        const auto bias = Vec::set1(f.bias[i]);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) acc[t] = Vec::add(acc[t], bias);
      }
      T* out = rows != nullptr ? rows + i * f.y.stride : block + r * kWidth;
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) Vec::store(out + t * Vec::kLanes, acc[t]);
    }
    if (rows == nullptr) unpack(block, kWidth, f.y, sample, samples, i0, count);
  }
}

template <bool kThrough, class T, class Index>
inline void forward_single(const Forward<T>& f, const Index* index, const T* x, const T* values, i64 begin, i64 end) {
  T block[kBlock];
  for (i64 i0 = begin; i0 < end; i0 += kBlock) {
    const i64 count = smaller(kBlock, end - i0);
    for (i64 r = 0; r < count; ++r) {
      const i64 i = i0 + r;
      const i64 first = f.rows.start[i], last = f.rows.start[i + 1];
      block[r] = finished(f, i, row_dot<kThrough>(x, index, f.rows.perm, values, first, last));
    }
    unpack(block, 1, f.y, 0, 1, i0, count);
  }
}

// sums = what the columns begin to end give.
template <class T>
inline void spread_single(const Forward<T>& f, T* sums, i64 begin, i64 end) {
  T x_block[kBlock];
  for (i64 i = 0; i < f.outputs; ++i) sums[i] = 0;
  for (i64 j0 = begin; j0 < end; j0 += kBlock) {
    const i64 count = smaller(kBlock, end - j0);
    pack(f.x, 0, 1, j0, count, x_block, 1);
    for (i64 r = 0; r < count; ++r) {
      const T x = x_block[r];
      for (i64 k = f.columns.start[j0 + r]; k < f.columns.start[j0 + r + 1]; ++k) {
        sums[f.columns.index[k]] += f.values[k] * x;
      }
    }
  }
}

// A range of outputs, from the sums of all parts.
template <class T>
inline void gather_single(const Forward<T>& f, const T* sums, i64 parts, i64 begin, i64 end) {
  T block[kBlock];
  for (i64 i0 = begin; i0 < end; i0 += kBlock) {
    const i64 count = smaller(kBlock, end - i0);
    for (i64 r = 0; r < count; ++r) {
      T sum = sums[i0 + r];
      for (i64 p = 1; p < parts; ++p) sum += sums[p * f.outputs + i0 + r];
      block[r] = finished(f, i0 + r, sum);
    }
    unpack(block, 1, f.y, 0, 1, i0, count);
  }
}

template <class T>
void forward_spread(const Forward<T>& f, const ForwardPlan& plan, std::byte* workspace) {
  T* sums = in_region<T>(workspace, plan.sums);
  const i64 parts = plan.spread;
  auto compute = [&](i64 begin, i64 end) {
    const i64 last = share_begin(parts, end, plan.threads);
    for (i64 part = share_begin(parts, begin, plan.threads); part < last; ++part) {
      spread_single(f, sums + part * f.outputs, part_begin(f.columns.start, f.inputs, part, parts),
                    part_begin(f.columns.start, f.inputs, part + 1, parts));
    }
  };
  in_threads(f.threads, plan.threads, compute);
  auto gather = [&](i64 begin, i64 end) {
    gather_single(f, sums, parts, share_begin(f.outputs, begin, plan.threads),
                  share_begin(f.outputs, end, plan.threads));
  };
  if (f.outputs * parts < kEndWork) {
    gather(0, plan.threads);
  } else {
    in_threads(f.threads, plan.threads, gather);
  }
}

// Eight loads ahead of eight stores take about half the time of GCC 12's own loop.
template <class T>
inline void put_in_order(const T* values, const i32* perm, i64 begin, i64 end, T* ordered) {
  i64 k = begin;
  for (; k + 8 <= end; k += 8) {
    T eight[8];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) eight[u] = values[perm[k + u]];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) ordered[k + u] = eight[u];
  }
  for (; k < end; ++k) ordered[k] = values[perm[k]];
}

// What a tile gives over a range of rows, with their indices or those in 16 bits.
template <class T, class S>
inline void forward_range(const Forward<T>& f, const ForwardPlan& plan, i64 t, const S* slab, const T* values,
                          i64 begin, i64 end) {
  const int width = plan.tiles.width_of(t);
  if constexpr (sizeof(S) == sizeof(T)) {
    if (width == 1) {
      if (f.narrow != nullptr) return forward_single<false>(f, f.narrow, slab, values, begin, end);
      const auto single = plan.order == Order::kThrough ? forward_single<true, T, i32> : forward_single<false, T, i32>;
      return single(f, f.rows.index, slab, values, begin, end);
    }
  }
  const i64 sample = plan.tiles.begin(t), samples = plan.tiles.samples_of(t);
  Isa<S>::with_width(width, [&]<class Vec, int NV>() {
    if (f.narrow != nullptr) {
      const auto tile = plan.order == Order::kOne ? forward_tile<Vec, NV, Order::kOne, S, u16>
                                                  : forward_tile<Vec, NV, Order::kFour, S, u16>;
      return tile(f, f.narrow, slab, values, sample, samples, begin, end, plan.block);
    }
    const auto tile = plan.order == Order::kThrough ? forward_tile<Vec, NV, Order::kThrough, S, i32>
                      : plan.order == Order::kOne   ? forward_tile<Vec, NV, Order::kOne, S, i32>
                                                    : forward_tile<Vec, NV, Order::kFour, S, i32>;
    tile(f, f.rows.index, slab, values, sample, samples, begin, end, plan.block);
  });
}

// S is what the slabs hold.
template <class T, class S = T>
void forward(const Forward<T>& f, const ForwardPlan& plan, std::byte* workspace) {
  if (f.samples == 0 || f.outputs == 0) return;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (plan.spread > 0) return forward_spread(f, plan, workspace);
  }
  const Tiles& tiles = plan.tiles;
  const int threads = plan.threads;
  const bool permute = plan.permuted.bytes > 0, alone = plan.sharing.alone && !plan.in_place;
  S* slabs = plan.in_place ? static_cast<S*>(f.x.data) : in_region<S>(workspace, plan.slabs);
  T* permuted = in_region<T>(workspace, plan.permuted);

  auto prepare = [&](i64 begin, i64 end) {
    if (permute) {
      put_in_order(f.values, f.rows.perm, share_begin(f.connections, begin, threads),
                   share_begin(f.connections, end, threads), permuted);
    }
    for_pieces(plan.packing, f.inputs, begin, end, threads, [&](i64 t, i64 from, i64 to) {
      pack_tile(f.x, tiles, t, from, to, plan.packing.step, slabs + tiles.begin(t) * f.inputs);
    });
  };
  if (plan.packing.pieces > 0 || permute) in_threads(f.threads, threads, prepare);

  const T* values = permute ? permuted : f.values;
  const i64 parts = plan.sharing.parts, items = parts * tiles.count();
  auto compute = [&](i64 begin, i64 end) {
    S* own = alone ? slabs + begin * tiles.room(f.inputs) : nullptr;
    const i64 first = share_begin(items, begin, threads), last = share_begin(items, end, threads);
    for (i64 item = first; item < last; ++item) {
      const i64 t = item / parts, part = item % parts;
      if (alone && plan.sharing.packs(item, first)) pack_tile(f.x, tiles, t, 0, f.inputs, plan.packing.step, own);
      const S* slab = alone ? own : slabs + tiles.begin(t) * f.inputs;
      forward_range(f, plan, t, slab, values, part_begin(f.rows.start, f.outputs, part, parts),
                    part_begin(f.rows.start, f.outputs, part + 1, parts));
    }
  };
  in_threads(f.threads, threads, compute);
}

}  // namespace
