// The inner loops of a convolution: what the rows of a view give at one run of positions.
#pragma once

#include "cpu/impl/base.h"

namespace {

constexpr i64 kAhead = 2;  // channels: what lies in memory is asked for before its turn

// A run, for the rows of each phase.
struct PhaseRun {
  i64 in, out, x;     // where a row's gathered part, its results and X begin, in elements
  i64 rows, columns;  // so many of its first were there in the run before
  bool live;          // whether it has positions that were not
};

template <class T>
struct Run {
  const PhaseRun* phases;
  const T* in;    // staged
  T* out;         // of the tile and the group
  const T* x;     // likewise
  const T* bias;  // of the group, where this block begins the sums
  T* partial;     // of the gradient
  i64 first;      // row of the view
  bool begins;    // the sums begin with this block
};

template <class Vec>
concept Streams = requires(typename Vec::Scalar* p, typename Vec::V x) { Vec::stream(p, x); };

template <class Vec>
DENDNORM_INLINE void put_result(typename Vec::Scalar* p, typename Vec::V x, bool stream) {
  if constexpr (Streams<Vec>) {
    if (stream) return Vec::stream(p, x);
  }
  Vec::store(p, x);
}

// Results of a row: sum over its connections of a weight times R rows of C vectors of what is gathered.
template <class Vec, int R, int C>
void gather_rows(const ConvPass<typename Vec::Scalar>& p, const Run<typename Vec::Scalar>& run) {
  using T = typename Vec::Scalar;
  constexpr int kLanes = Vec::kLanes;
  const i64 pitch = p.pitch, out_row = p.out.row * p.axis[0].apart, out_column = p.out.column * p.axis[1].apart;
  for (i64 i = run.first; i < run.first + p.view_rows; ++i) {
    const i64 begin = p.start[i], end = p.start[i + 1];
    const PhaseRun& phase = run.phases[p.phase[i]];
    if (!phase.live || (begin == end && !run.begins)) continue;
    const T* in = run.in + phase.in;
    T* out = run.out + p.channel[i] * p.out.channel + phase.out;
    typename Vec::V acc[R][C];
    if (run.begins) {
      const auto first = run.bias != nullptr ? Vec::set1(run.bias[p.channel[i]]) : Vec::zero();
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) acc[r][c] = first;
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) acc[r][c] = Vec::load(out + r * out_row + c * out_column);
      }
    }
    for (i64 k = begin; k < end; ++k) {
      const T* from = in + p.offset[k];
      const auto w = Vec::set1(p.value[k]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) acc[r][c] = Vec::fma(w, Vec::load(from + r * pitch + c * kLanes), acc[r][c]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) put_result<Vec>(out + r * out_row + c * out_column, acc[r][c], p.stream);
    }
  }
}

// Vectors whose sums over the samples are the gradients of consecutive connections: they wait until so many can be
// reduced together, also across the ends of rows.
template <class Vec>
struct Reduction {
  using T = typename Vec::Scalar;
  static constexpr int kRoom = 4 * Vec::kFolds;

  typename Vec::V held[kRoom];
  int count = 0;

  // Adds the sums of all that is held to `to`.
  DENDNORM_INLINE void all(T* to) {
    if constexpr (Vec::kFolds > 1) {
      decltype(Vec::fold(held)) folded[Vec::kFolds];
#pragma GCC unroll 4
      for (int f = 0; f < Vec::kFolds; ++f) folded[f] = Vec::fold(held + 4 * f);
      Vec::put(folded, to, true);
    } else {
      Vec::put4(Vec::fold(held), to, true);
    }
    count = 0;
  }
  inline void rest(T* to) {
    T sums[kRoom] = {};
    const int n = count;
    for (int i = n; i < kRoom; ++i) held[i] = Vec::zero();
    all(sums);
    for (int i = 0; i < n; ++i) to[i] += sums[i];
  }
};

// A row of X at a run, without what was there before.
template <class Vec, int R, int C>
DENDNORM_INLINE void load_run(const PhaseRun& phase, const typename Vec::Scalar* x, i64 x_row, i64 x_column,
                              typename Vec::Scalar* to) {
  constexpr int kLanes = Vec::kLanes;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) Vec::store(to + (r * C + c) * kLanes, Vec::load(x + r * x_row + c * x_column));
  }
  if ((phase.rows | phase.columns) == 0) return;
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      if (r < phase.rows || c < phase.columns) Vec::store(to + (r * C + c) * kLanes, Vec::zero());
    }
  }
}

// As gather_rows, with dY gathered: its results are dX, and each of dY's runs serves the gradient of its connection,
// too.
template <class Vec, int R, int C, bool kDx>
void fused_rows(const ConvPass<typename Vec::Scalar>& p, const Run<typename Vec::Scalar>& run) {
  using T = typename Vec::Scalar;
  constexpr int kLanes = Vec::kLanes, kChains = R * C < 4 ? R * C : 4;
  const i64 pitch = p.pitch;
  const i64 out_row = p.out.row * p.axis[0].apart, out_column = p.out.column * p.axis[1].apart;
  const i64 x_row = p.x.row * p.axis[0].apart, x_column = p.x.column * p.axis[1].apart;
  alignas(kAlign) T x[R * C * kLanes];
  Reduction<Vec> reduction;
  i64 done = p.start[run.first];  // all before it are in the gradient
  for (i64 i = run.first; i < run.first + p.view_rows; ++i) {
    const i64 begin = p.start[i], end = p.start[i + 1];
    const PhaseRun& phase = run.phases[p.phase[i]];
    if (!phase.live) {
      if (begin == end) continue;
      if (reduction.count > 0) reduction.rest(run.partial + done);
      done = end;
      continue;
    }
    if (i + kAhead < run.first + p.view_rows) {
      const T* next = run.x + p.channel[i + kAhead] * p.x.channel + run.phases[p.phase[i + kAhead]].x;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) __builtin_prefetch(next + r * x_row + c * x_column);
      }
    }
    if (begin == end && !(kDx && run.begins)) continue;
    const T* in = run.in + phase.in;
    const i64 channel = p.channel[i];
    T* out = kDx ? run.out + channel * p.out.channel + phase.out : nullptr;
    load_run<Vec, R, C>(phase, run.x + channel * p.x.channel + phase.x, x_row, x_column, x);
    typename Vec::V acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        if constexpr (!kDx) {
          acc[r][c] = Vec::load(x + (r * C + c) * kLanes);
        } else {
          acc[r][c] = run.begins ? Vec::zero() : Vec::load(out + r * out_row + c * out_column);
        }
      }
    }
    for (i64 k = begin; k < end;) {
      const i64 room = Reduction<Vec>::kRoom - reduction.count, stop = smaller(end, k + room);
      for (; k < stop; ++k) {
        const T* from = in + p.offset[k];
        typename Vec::V sums[kChains];
        const auto w = Vec::set1(p.value[k]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
            const int at = r * C + c;
            const auto dy = Vec::load(from + r * pitch + c * kLanes);
            const auto other = kDx ? Vec::load(x + at * kLanes) : acc[r][c];
            if constexpr (kDx) acc[r][c] = Vec::fma(w, dy, acc[r][c]);
            sums[at % kChains] = at < kChains ? Vec::mul(dy, other) : Vec::fma(dy, other, sums[at % kChains]);
          }
        }
#pragma GCC unroll 4
        for (int u = 1; u < kChains; ++u) sums[0] = Vec::add(sums[0], sums[u]);
        reduction.held[reduction.count++] = sums[0];
      }
      if (reduction.count == Reduction<Vec>::kRoom) {
        reduction.all(run.partial + done);
        done = k;
      }
    }
    if constexpr (kDx) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) put_result<Vec>(out + r * out_row + c * out_column, acc[r][c], p.stream);
      }
    }
  }
  if (reduction.count > 0) reduction.rest(run.partial + done);
}

}  // namespace
