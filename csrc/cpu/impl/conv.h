// Convolutions: regions of images are staged, and rows of a view run over them.
#pragma once

#include "cpu/impl/base.h"
#include "cpu/impl/conv_loops.h"

namespace {

template <class T>
constexpr ConvLimits conv_limits() {
  using Vec = typename Isa<T>::Conv;
  return {Vec::kLanes, Isa<T>::kGathered, Isa<T>::kFused, Streams<Vec>};
}

template <class T>
using RunRows = void (*)(const ConvPass<T>&, const Run<T>&);

template <class T, bool kFused>
RunRows<T> rows_of_run(const ConvPass<T>& p) {
  using Vec = typename Isa<T>::Conv;
  constexpr int kMost = kFused ? Isa<T>::kFused : Isa<T>::kGathered;
  const i64 rows = p.axis[0].run, columns = p.axis[1].run;
#define DENDNORM_RUN_SHAPE(R, C)                                                        \
  if constexpr (R * C <= kMost) {                                                       \
    if (rows == R && columns == C) {                                                    \
      if constexpr (kFused) {                                                           \
        return p.wants_dx ? fused_rows<Vec, R, C, true> : fused_rows<Vec, R, C, false>; \
      } else {                                                                          \
        return gather_rows<Vec, R, C>;                                                  \
      }                                                                                 \
    }                                                                                   \
  }
  DENDNORM_RUN_SHAPES(DENDNORM_RUN_SHAPE)
#undef DENDNORM_RUN_SHAPE
  return nullptr;
}

// Where run number `run` of a phase begins, and whether it has positions that the runs before have not.
DENDNORM_INLINE i64 start_of(const ConvAxis& axis, i64 phase, i64 run) {
  return smaller(run * axis.run, axis.count[phase] - axis.run);
}
DENDNORM_INLINE bool is_live(const ConvAxis& axis, i64 phase, i64 run) {
  return axis.count[phase] > 0 && run * axis.run - start_of(axis, phase, run) < axis.run;
}
// Where the region of a run begins.
DENDNORM_INLINE i64 region_of(const ConvAxis& axis, i64 run) {
  i64 low = -1;
  for (i64 phase = 0; phase < axis.phases; ++phase) {
    if (!is_live(axis, phase, run)) continue;
    const i64 at = axis.shift[phase] + start_of(axis, phase, run);
    if (low < 0 || at < low) low = at;
  }
  return low;
}

// Channels of the region that begins at (row, column), with zeros where the image ends.
template <class Vec>
void stage(const ConvPass<typename Vec::Scalar>& p, const typename Vec::Scalar* images, i64 channels, i64 row,
           i64 column, typename Vec::Scalar* to) {
  constexpr int kLanes = Vec::kLanes;
  const ConvAxis &rows = p.axis[0], &columns = p.axis[1];
  const i64 apart = p.in.column * columns.step, width = columns.region;
  const i64 ahead = kAhead * p.in.channel;
  for (i64 c = 0; c < channels; ++c, images += p.in.channel) {
    for (i64 a = 0; a < rows.gathered_phases; ++a) {
      for (i64 b = 0; b < columns.gathered_phases; ++b) {
        const i64 first = (column + columns.offset) * columns.step + columns.residue[b];
        i64 low = first < 0 ? (columns.step - 1 - first) / columns.step : 0;
        i64 high = first < columns.size ? (columns.size - first + columns.step - 1) / columns.step : 0;
        high = smaller(high, width);
        low = smaller(low, high);
        for (i64 r = 0; r < rows.region; ++r, to += p.pitch) {
          const i64 h = (row + rows.offset + r) * rows.step + rows.residue[a];
          if (h < 0 || h >= rows.size) {
            for (i64 t = 0; t < width; ++t) Vec::store(to + t * kLanes, Vec::zero());
            continue;
          }
          const auto* from = images + h * p.in.row + first * p.in.column;
          for (i64 t = 0; t < low; ++t) Vec::store(to + t * kLanes, Vec::zero());
          for (i64 t = low; t < high; ++t) {
            __builtin_prefetch(from + ahead + t * apart);
            Vec::store(to + t * kLanes, Vec::load(from + t * apart));
          }
          for (i64 t = high; t < width; ++t) Vec::store(to + t * kLanes, Vec::zero());
        }
      }
    }
  }
}

// What one tile gives at the runs of one row of runs.
template <class T>
void conv_row(const ConvPass<T>& p, RunRows<T> rows_of, i64 tile, i64 run_row, T* scratch, PhaseRun* phases,
              T* partial) {
  using Vec = typename Isa<T>::Conv;
  const ConvAxis &rows = p.axis[0], &columns = p.axis[1];
  const i64 region_row = region_of(rows, run_row);
  for (i64 run_column = 0; run_column < columns.runs; ++run_column) {
    const i64 region_column = region_of(columns, run_column);
    for (i64 a = 0; a < rows.phases; ++a) {
      for (i64 b = 0; b < columns.phases; ++b) {
        PhaseRun& phase = phases[a * columns.phases + b];
        phase.live = is_live(rows, a, run_row) && is_live(columns, b, run_column);
        if (!phase.live) continue;
        const i64 u = start_of(rows, a, run_row), v = start_of(columns, b, run_column);
        const i64 h = rows.first[a] + u * rows.apart, w = columns.first[b] + v * columns.apart;
        phase.in = (rows.shift[a] + u - region_row) * p.pitch + (columns.shift[b] + v - region_column) * p.lanes;
        phase.out = h * p.out.row + w * p.out.column;
        phase.x = h * p.x.row + w * p.x.column;
        phase.rows = run_row * rows.run - u;
        phase.columns = run_column * columns.run - v;
      }
    }
    for (i64 group = 0; group < p.groups; ++group) {
      Run<T> run;
      run.phases = phases;
      run.in = scratch;
      const i64 channel = group * p.out_channels;
      run.out = p.out.data + tile * p.out.tile + channel * p.out.channel;
      run.x = p.x.data + tile * p.x.tile + channel * p.x.channel;
      run.bias = p.bias != nullptr ? p.bias + channel : nullptr;
      run.partial = partial;
      for (i64 block = 0; block < p.blocks; ++block) {
        const i64 from = block * p.block, count = smaller(p.block, p.in_channels - from);
        stage<Vec>(p, p.in.data + tile * p.in.tile + (group * p.in_channels + from) * p.in.channel, count, region_row,
                   region_column, scratch);
        run.first = (group * p.blocks + block) * p.view_rows;
        run.begins = block == 0;
        rows_of(p, run);
      }
    }
  }
}

// Items [first, last) of the work: some rows of runs of a tile.
template <class T>
void conv_items(const ConvPass<T>& p, RunRows<T> rows_of, i64 first, i64 last, T* scratch, PhaseRun* phases,
                T* partial) {
  for (i64 item = first; item < last; ++item) {
    const i64 tile = item / p.items_of_tile;
    const i64 part = item % p.items_of_tile;
    const i64 begin = part * p.step, end = part + 1 == p.items_of_tile ? p.axis[0].runs : begin + p.step;
    for (i64 row = begin; row < end; ++row) conv_row(p, rows_of, tile, row, scratch, phases, partial);
  }
}

template <class T>
T* scratch_of(const ConvPass<T>& p, std::byte* workspace, i64 thread) {
  return reinterpret_cast<T*>(workspace + thread * p.thread_bytes);
}
template <class T>
PhaseRun* phases_of(const ConvPass<T>& p, std::byte* workspace, i64 thread) {
  return reinterpret_cast<PhaseRun*>(workspace + thread * p.thread_bytes + p.scratch * static_cast<i64>(sizeof(T)));
}

template <class T>
void conv_gather(const ConvPass<T>& p, const Threads& threads, int count, std::byte* workspace) {
  const auto rows_of = rows_of_run<T, false>(p);
  auto body = [&](i64 begin, i64 end) {
    conv_items<T>(p, rows_of, share_begin(p.items, begin, count), share_begin(p.items, end, count),
                  scratch_of(p, workspace, begin), phases_of(p, workspace, begin), nullptr);
  };
  in_threads(threads, count, body);
}

// Each part of the items has sums of its own, so that no addition depends on the threads.
template <class T>
void conv_fused(const ConvPass<T>& p, const Threads& threads, int count, std::byte* workspace) {
  const auto rows_of = rows_of_run<T, true>(p);
  const int parts = static_cast<int>(p.parts);
  auto body = [&](i64 begin, i64 end) {
    const i64 last = share_begin(parts, end, count);
    for (i64 part = share_begin(parts, begin, count); part < last; ++part) {
      T* partial = p.partials + part * p.distance;
      for (i64 k = 0; p.first && k < p.connections; ++k) partial[k] = 0;
      conv_items<T>(p, rows_of, share_begin(p.items, part, parts), share_begin(p.items, part + 1, parts),
                    scratch_of(p, workspace, begin), phases_of(p, workspace, begin), partial);
    }
  };
  in_threads(threads, count, body);
  if (!p.last) return;
  auto add = [&](i64 begin, i64 end) {
    const i64 last = share_begin(p.connections, end, count);
    for (i64 k = share_begin(p.connections, begin, count); k < last; ++k) {
      T sum = p.partials[k];
      for (i64 part = 1; part < parts; ++part) sum += p.partials[part * p.distance + k];
      p.gradient[p.source[k]] = sum;
    }
  };
  in_threads(threads, count, add);
}

}  // namespace
