#include "cpu/conv_plan.h"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"

namespace dendnorm::cpu {
namespace {

using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr i64 kPartsBytes = i64{32} << 20;  // of the sums of all parts

// Bytes of a staged region, which stays in the second-level cache. Backward more than 640 KiB gain nothing: X and dX
// pass through the same cache.
i64 near_bytes(bool forward) {
  const i64 share = 5 * second_level_cache() / 8;
  return forward ? share : std::min<i64>(share, 640 << 10);
}

i64 divided_up(i64 x, i64 y) { return (x + y - 1) / y; }

constexpr RunShape kRunShapes[] = {
#define DENDNORM_RUN_SHAPE(R, T) {R, T},
    DENDNORM_RUN_SHAPES(DENDNORM_RUN_SHAPE)
#undef DENDNORM_RUN_SHAPE
};

// One of the two dimensions, as the plan finds it.
struct Axis {
  ConvAxis axis{};
  i64 halo = 0;
  std::vector<i64> residue, first, shift, count;
  std::vector<i64> tap_phase, tap_shift;  // of each row of the window

  i64 most() const { return *std::max_element(count.begin(), count.end()); }
  // The least count of a phase that has positions.
  i64 least() const {
    i64 least = most();
    for (const i64 n : count) {
      if (n > 0) least = std::min(least, n);
    }
    return least;
  }
};

Axis forward_axis(const ConvShape& s, int d) {
  const Window& w = s.window;
  Axis a;
  a.halo = (w.extent(d) - 1) / w.stride[d];
  for (i64 k = 0; k < w.kernel[d]; ++k) {
    const i64 at = k * w.dilation[d], residue = at % w.stride[d];
    auto found = std::find(a.residue.begin(), a.residue.end(), residue - w.padding[2 * d]);
    if (found == a.residue.end()) found = a.residue.insert(found, residue - w.padding[2 * d]);
    a.tap_phase.push_back(found - a.residue.begin());
    a.tap_shift.push_back(at / w.stride[d]);
  }
  a.first = {0};
  a.shift = {0};
  a.count = {d == 0 ? s.out_height() : s.out_width()};
  a.axis.size = d == 0 ? s.height : s.width;
  a.axis.step = w.stride[d];
  a.axis.offset = 0;
  a.axis.apart = 1;
  return a;
}

Axis backward_axis(const ConvShape& s, int d) {
  const Window& w = s.window;
  const i64 stride = w.stride[d], padding = w.padding[2 * d], size = d == 0 ? s.height : s.width;
  Axis a;
  a.halo = (w.extent(d) - 1) / stride;
  for (i64 k = 0; k < w.kernel[d]; ++k) {
    a.tap_phase.push_back(k * w.dilation[d] % stride);
    a.tap_shift.push_back(a.halo - k * w.dilation[d] / stride);
  }
  for (i64 phase = 0; phase < stride; ++phase) {
    const i64 shift = padding > phase ? divided_up(padding - phase, stride) : 0;
    const i64 end = size + padding > phase ? divided_up(size + padding - phase, stride) : 0;
    a.shift.push_back(shift);
    a.first.push_back(shift * stride + phase - padding);
    a.count.push_back(std::max<i64>(0, end - shift));
  }
  a.residue = {0};
  a.axis.size = d == 0 ? s.out_height() : s.out_width();
  a.axis.step = 1;
  a.axis.offset = -a.halo;
  a.axis.apart = stride;
  return a;
}

// With runs of so many positions: how many there are, and what a region must hold.
void set_run(Axis& a, i64 run) {
  a.axis.run = run;
  a.axis.runs = divided_up(a.most(), run);
  i64 slack = 0;
  for (i64 r = 0; r < a.axis.runs; ++r) {
    i64 low = -1, high = 0;
    for (std::size_t p = 0; p < a.count.size(); ++p) {
      const i64 start = std::min(r * run, a.count[p] - run);
      if (a.count[p] == 0 || r * run - start >= run) continue;
      const i64 at = a.shift[p] + start;
      low = low < 0 ? at : std::min(low, at);
      high = std::max(high, at);
    }
    slack = std::max(slack, high - low);
  }
  a.axis.region = run + a.halo + slack;
  a.axis.gathered_phases = static_cast<i64>(a.residue.size());
  a.axis.residue = a.residue.data();
  a.axis.phases = static_cast<i64>(a.count.size());
  a.axis.first = a.first.data();
  a.axis.shift = a.shift.data();
  a.axis.count = a.count.data();
}

}  // namespace

template <class T>
struct ConvPlan<T>::Tables {
  Axis axis[2];
  std::vector<i32> start, channel, phase, offset, source;
  std::vector<T> value;
};

template <class T>
ConvPlan<T>::~ConvPlan() = default;

template <class T>
ConvPlan<T>::ConvPlan(const ConvShape& s, const View& rows, const View& columns, const T* weights, Direction direction,
                      const ConvLimits& limits)
    : pass{}, tables_(std::make_unique<Tables>()) {
  Tables& t = *tables_;
  const Window& w = s.window;
  const bool forward = direction == Direction::kForward;
  const bool gathers = forward || direction == Direction::kInput;
  for (int d = 0; d < 2; ++d) t.axis[d] = forward ? forward_axis(s, d) : backward_axis(s, d);
  ConvPass<T>& p = pass;
  p.lanes = limits.lanes;
  p.tiles = divided_up(s.samples, p.lanes);
  p.groups = w.groups;
  p.in_channels = forward ? s.group_channels() : s.group_filters();
  p.out_channels = forward ? s.group_filters() : s.group_channels();
  p.connections = s.connections;

  // ---- The run: the cheapest of those that fit ----
  const double nonzeros = static_cast<double>(s.connections) / static_cast<double>(w.groups * p.in_channels);
  double best = 0;
  RunShape chosen{0, 0};
  for (const RunShape& run : kRunShapes) {
    if (run.rows * run.columns > (gathers ? limits.gathered : limits.fused)) continue;
    if (run.rows > t.axis[0].least() || run.columns > t.axis[1].least()) continue;
    const double runs =
        static_cast<double>(divided_up(t.axis[0].most(), run.rows) * divided_up(t.axis[1].most(), run.columns));
    const double staged = static_cast<double>((run.rows + t.axis[0].halo) * (run.columns + t.axis[1].halo) *
                                              static_cast<i64>(t.axis[0].residue.size() * t.axis[1].residue.size()));
    const double phases = static_cast<double>(t.axis[0].count.size() * t.axis[1].count.size());
    const double rows_cost = phases * static_cast<double>(p.out_channels) / static_cast<double>(p.in_channels) *
                             (2.0 * run.rows * run.columns + 12);
    const double cost = runs * (2.5 * staged + nonzeros * (run.rows * run.columns + 1.5) + rows_cost);
    if (chosen.rows == 0 || cost < best) {
      best = cost;
      chosen = run;
    }
  }
  set_run(t.axis[0], chosen.rows);
  set_run(t.axis[1], chosen.columns);
  for (int d = 0; d < 2; ++d) p.axis[d] = t.axis[d].axis;
  p.pitch = p.axis[1].region * p.lanes;
  p.plane = p.axis[0].region * p.pitch;

  // ---- Blocks of gathered channels ----
  const i64 gathered_phases = p.axis[0].gathered_phases * p.axis[1].gathered_phases;
  const i64 bytes = gathered_phases * p.plane * static_cast<i64>(sizeof(T));  // of a channel
  p.block = std::clamp<i64>(near_bytes(forward) / bytes, 1, p.in_channels);
  p.blocks = divided_up(p.in_channels, p.block);
  p.block = divided_up(p.in_channels, p.blocks);
  p.blocks = divided_up(p.in_channels, p.block);
  p.scratch = divided_up(p.block * gathered_phases * p.plane, 16) * 16;

  // ---- Tables: two passes over the connections ----
  const i64 phases = p.axis[0].phases * p.axis[1].phases;
  p.view_rows = p.out_channels * phases;
  const i64 segments = p.groups * p.blocks * p.view_rows;
  const i64 taps = s.group_channels() * w.area();
  std::vector<i32> tap_segment(taps), tap_offset(taps);
  for (i64 tap = 0; tap < taps; ++tap) {
    const i64 c = tap / w.area(), y = tap % w.area() / w.kernel[1], x = tap % w.kernel[1];
    const i64 phase =
        t.axis[0].tap_phase[y] * (forward ? p.axis[1].gathered_phases : p.axis[1].phases) + t.axis[1].tap_phase[x];
    const i64 within = t.axis[0].tap_shift[y] * p.pitch + t.axis[1].tap_shift[x] * p.lanes;
    tap_segment[tap] = static_cast<i32>(forward ? c / p.block * p.view_rows : c * phases + phase);
    tap_offset[tap] = static_cast<i32>(forward ? (c % p.block * gathered_phases + phase) * p.plane + within : within);
  }
  std::vector<i64> filter_segment(s.filters), filter_offset(s.filters);
  for (i64 o = 0; o < s.filters; ++o) {
    const i64 group = o / s.group_filters(), local = o % s.group_filters();
    const i64 block = forward ? 0 : local / p.block;
    filter_segment[o] = (group * p.blocks + block) * p.view_rows + (forward ? local : 0);
    filter_offset[o] = forward ? 0 : local % p.block * p.plane;
  }
  // body(filter, tap, place among the weights): by filters forward, backward by taps, as rows of the view come.
  const auto for_connections = [&](auto body) {
    for (i64 o = 0; forward && o < s.filters; ++o) {
      for (i64 k = rows.start[o]; k < rows.start[o + 1]; ++k) body(o, rows.index[k], rows.perm[k]);
    }
    for (i64 tap = 0; !forward && tap < taps; ++tap) {
      for (i32 k = columns.start[tap]; k < columns.start[tap + 1]; ++k) body(columns.index[k], tap, k);
    }
  };
  std::vector<i32> place(segments, 0);
  for_connections([&](i64 o, i64 tap, i32) { ++place[filter_segment[o] + tap_segment[tap]]; });
  t.start.resize(segments + 1);
  t.channel.resize(segments);
  t.phase.resize(segments);
  std::vector<i32> heads, order(p.view_rows);
  i32 next = 0;
  for (i64 begin = 0; begin < segments; begin += p.view_rows) {
    // By count, so that the trips of the inner loop are foreseen.
    const i32 most = *std::max_element(place.begin() + begin, place.begin() + begin + p.view_rows);
    heads.assign(most + 2, 0);
    for (i64 r = 0; r < p.view_rows; ++r) ++heads[place[begin + r] + 1];
    for (i32 n = 0; n <= most; ++n) heads[n + 1] += heads[n];
    for (i64 r = 0; r < p.view_rows; ++r) order[heads[place[begin + r]]++] = static_cast<i32>(r);
    for (i64 i = 0; i < p.view_rows; ++i) {
      const i64 r = order[i];
      t.start[begin + i] = next;
      t.channel[begin + i] = static_cast<i32>(r / phases);
      t.phase[begin + i] = static_cast<i32>(r % phases);
      const i32 count = place[begin + r];
      place[begin + r] = next;
      next += count;
    }
  }
  t.start[segments] = next;
  t.offset.resize(s.connections);
  t.source.resize(s.connections);
  t.value.resize(s.connections);
  for_connections([&](i64 o, i64 tap, i32 source) {
    const i32 at = place[filter_segment[o] + tap_segment[tap]]++;
    t.offset[at] = static_cast<i32>(filter_offset[o]) + tap_offset[tap];
    t.source[at] = source;
    t.value[at] = weights[source];
  });
  p.start = t.start.data();
  p.channel = t.channel.data();
  p.phase = t.phase.data();
  p.offset = t.offset.data();
  p.source = t.source.data();
  p.value = t.value.data();

  // ---- Work ----
  // The last runs of a phase may overlap, and phases differ by one run: nobody else may have those.
  p.step = 3;
  p.items_of_tile = std::max<i64>(1, p.axis[0].runs / p.step);
  p.items = p.tiles * p.items_of_tile;
  p.distance = divided_up(s.connections, 16) * 16 + 16;
  p.thread_bytes = divided_up(p.scratch * static_cast<i64>(sizeof(T)) + phases * 64, 4096) * 4096 + 64;
  p.wants_dx = direction == Direction::kInput || direction == Direction::kBoth;
  p.stream = limits.streams && p.blocks == 1;
}

// Each part has sums of its own, so that threads share nothing; how many follows from the shape.
template <class T>
void ConvPlan<T>::set_parts(std::int64_t tiles) {
  const i64 items = tiles * pass.items_of_tile, bytes = pass.connections * static_cast<i64>(sizeof(T));
  pass.parts = 1;
  while (pass.parts < 16 && 2 * pass.parts <= items && 2 * pass.parts * bytes <= kPartsBytes) pass.parts *= 2;
}

template class ConvPlan<float>;
template class ConvPlan<double>;

}  // namespace dendnorm::cpu
