#include "cpu/plan.h"

#include <algorithm>

namespace dendnorm::cpu {
namespace {

using i32 = std::int32_t;
using i64 = std::int64_t;

// Connections times samples for one thread, about 10 us on a core with AVX-512 and 20 on one without: a region takes 1
// to 5 us to open, and milliseconds where the system runs somebody else on one of its cores.
constexpr i64 kWorthThread = 200000;
constexpr i64 kLeastSamples = 8;             // a connection costs as much for fewer
constexpr i64 kWorthPart = 30000;            // connections of a single sample
constexpr i64 kNearTile = i64{1} << 20;      // bytes; a larger tile lies mostly beyond the second-level cache
constexpr i64 kSpreadBytes = 128 * 1024;     // of outputs that stay near
constexpr i64 kFromMemory = i64{1} << 20;    // activations
constexpr i64 kGroupsBytes = i64{16} << 20;  // of the gradients of groups

i64 divided_up(i64 x, i64 y) { return (x + y - 1) / y; }
i64 aligned(i64 bytes) { return divided_up(bytes, kAlign) * kAlign; }

int covering_width(i64 samples, int narrowest) {
  int width = narrowest;
  while (width < samples) width *= 2;
  return width;
}

// The first segment s with cost(s) = start[s] + 4 s >= share; the 4 stands for what a segment costs by itself.
i64 segment_at(const i32* start, i64 segments, i64 share) {
  i64 low = 0, high = segments;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (start[middle] + 4 * middle < share) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// How many pieces of every group make the work of all threads equal.
i64 parts_per_group(i64 groups, int threads) {
  i64 parts = 1;
  while (parts < threads && groups * parts % threads != 0) ++parts;
  return parts;
}

Sharing sharing_of(i64 groups, i64 tiles, int threads, i64 neurons, i64 connections) {
  const i64 parts = parts_per_group(groups, threads);
  return {parts, parts == 1 || (tiles == 1 && 4 * neurons * threads <= connections)};
}

// Samples of the narrowest tile: two vectors of bfloat16 lie in one.
int narrowest(int slab_bytes) { return slab_bytes == 2 ? 8 : 4; }

// As many as have work enough, whatever there are.
int worthwhile_threads(const Threads& threads, i64 connections, i64 samples, i64 neurons) {
  const i64 work = connections * std::max(samples, kLeastSamples) + 4 * neurons * samples;
  return static_cast<int>(std::clamp<i64>(divided_up(work, kWorthThread), 1, threads.count));
}

// How many neurons are packed or unpacked at a time. Rows whose distance is a multiple of 1 KiB share few sets of a
// cache, which loses their lines soon: the more of every row is used at once, the fewer lines are fetched twice.
i64 block_of(const Activations& x) {
  const i64 size = x.type == Type::kFloat64 ? 8 : x.type == Type::kFloat32 ? 4 : 2;
  return !x.feature_major && x.stride * size % 1024 == 0 ? kBlock : kBlock / 2;
}

// How many neurons are packed at a time where nothing but the packing decides it. What comes from memory comes faster
// in long runs of a row.
i64 sweep_of(const Activations& x, i64 samples, i64 neurons) {
  return !x.feature_major && samples * neurons > kFromMemory ? neurons : block_of(x);
}

// Whether the caller's memory is a slab already: feature-major, one tile, whole and aligned. More tiles side by side
// would do without a copy, too, but use few of the cache's sets: the products take 10 to 20 % longer than the copy.
template <class T>
bool usable_in_place(const Activations& x, const Tiles& tiles, int slab_bytes) {
  const Type type = sizeof(T) == 8 ? Type::kFloat64 : slab_bytes == 2 ? Type::kBFloat16 : Type::kFloat32;
  if (x.type != type || tiles.count() != 1) return false;
  if (tiles.samples == 1) return !x.feature_major || x.stride == 1;
  const i64 width = tiles.width_of(0);
  return x.feature_major && tiles.samples == width && x.stride == width &&
         reinterpret_cast<std::uintptr_t>(x.data) % kAlign == 0;
}

// Lays regions one behind the other.
class Workspace {
 public:
  Region take(i64 bytes) {
    const Region region{end_, aligned(bytes)};
    end_ += region.bytes;
    return region;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(end_); }

 private:
  i64 end_ = 0;
};

// Elements for all tiles, or for one of each thread.
i64 slab_elements(const Tiles& tiles, const Sharing& sharing, int threads, i64 neurons) {
  return sharing.alone ? threads * tiles.room(neurons) : tiles.total() * neurons;
}

// A single sample is faster to compute over the columns, whose values and indices are read in order, as long as the
// outputs that they add to stay near. Every part of the columns has sums of its own; how many there are decides the
// order of addition, so it follows from the work and not from the threads.
template <class T>
i64 spread_of(const Forward<T>& f) {
  if (f.samples != 1 || f.columns.start == nullptr || f.outputs * static_cast<i64>(sizeof(T)) > kSpreadBytes) return 0;
  i64 parts = 1;
  while (parts < 8 && f.connections >= kWorthPart * parts) parts *= 2;
  return parts;
}

// In the loop a value that lies in column order costs a second index; in a copy in row order it does not, but that pays
// only where the values are read again for another tile.
Order order_of(const Tiles& tiles, i64 tile_bytes, bool in_order) {
  if (tiles.count() <= 1 && !in_order) return Order::kThrough;
  return tile_bytes > kNearTile ? Order::kOne : Order::kFour;
}

// The tiles are taken in groups. Each has sums of its own for the gradient, so many bytes, which are added in the end:
// so a thread can have whole tiles to itself, with those samples of dY in its own cache. Groups have equally many of
// the widest tiles, where the narrower ones count as one, none has more than 4/3 of its share of the samples, and they
// follow from the shape alone.
int groups_of(const Tiles& tiles, i64 sums) {
  if (tiles.wide() == 0 || 3 * tiles.wide() * tiles.width > 4 * tiles.samples) return 1;
  int groups = 1;
  while (groups < 8 && tiles.wide() % (2 * groups) == 0 && (2 * groups - 1) * sums <= kGroupsBytes) groups *= 2;
  return groups;
}

}  // namespace

// ---- Tiles of the batch ----

Tiles tiles_of(i64 samples, int widest, int narrowest) {
  if (samples == 1) return {1, 1, 1, {0, 0}, 0};
  Tiles tiles{samples, samples / widest, widest, {0, 0}, 0};
  const i64 rest = samples - tiles.full * widest;
  if (rest == 0) return tiles;
  int width = covering_width(rest, narrowest);
  if (width >= 32 && 4 * rest <= 3 * width) {  // two tiles waste less than one
    tiles.tail[tiles.tails++] = width / 2;
    width = covering_width(rest - width / 2, narrowest);
  }
  tiles.tail[tiles.tails++] = width;
  return tiles;
}

// ---- Shares of the threads ----

i64 grain_begin(i64 neurons, i64 part, i64 parts) {
  return std::min(neurons, divided_up(neurons, kGrain) * part / parts * kGrain);
}

i64 part_begin(const i32* start, i64 segments, i64 part, i64 parts) {
  if (part <= 0) return 0;
  if (part >= parts) return segments;
  const i64 cost = start[segments] + 4 * segments;
  const i64 segment = segment_at(start, segments, cost / parts * part);
  return std::min(segments, (segment + kGrain / 2) / kGrain * kGrain);
}

// ---- Plans ----

template <class T>
ForwardPlan plan_forward(const Forward<T>& f, const Widths& widths, int slab_bytes) {
  constexpr i64 kSize = sizeof(T);
  ForwardPlan plan{};
  const Tiles tiles = plan.tiles = tiles_of(f.samples, widths.forward, narrowest(slab_bytes));
  plan.threads = worthwhile_threads(f.threads, f.connections, f.samples, f.inputs + f.outputs);
  plan.sharing = sharing_of(tiles.count(), tiles.count(), plan.threads, f.inputs, f.connections);
  plan.in_place = usable_in_place<T>(f.x, tiles, slab_bytes);
  const i64 parts = plan.sharing.parts;
  plan.packing = {parts, plan.in_place || plan.sharing.alone ? 0 : parts * tiles.count(),
                  sweep_of(f.x, f.samples, f.inputs)};
  plan.order = order_of(tiles, tiles.room(f.inputs) * slab_bytes, f.rows.perm == nullptr);
  plan.spread = spread_of(f);
  plan.block = block_of(f.y);
  Workspace workspace;
  if (plan.spread > 0) {
    plan.sums = workspace.take(plan.spread * f.outputs * kSize);
  } else if (!plan.in_place) {
    plan.slabs = workspace.take(slab_elements(tiles, plan.sharing, plan.threads, f.inputs) * slab_bytes);
  }
  if (plan.order != Order::kThrough && f.rows.perm != nullptr) plan.permuted = workspace.take(f.connections * kSize);
  plan.workspace_bytes = workspace.bytes();
  return plan;
}

template <class T>
ColumnsPlan plan_columns(const Columns<T>& c, const Widths& widths, int slab_bytes) {
  constexpr i64 kSize = sizeof(T);
  const int widest = widths.columns;
  const bool wants_gradient = c.gradient != nullptr, wants_dx = c.dx.data != nullptr;
  ColumnsPlan plan{};
  // Of many outputs half as many samples stay nearer; where that is not near either, threads had better share a tile.
  const bool many = c.outputs * widest * slab_bytes > 2 * kNearTile;
  const Tiles tiles = plan.tiles = tiles_of(c.samples, many ? widest / 2 : widest, narrowest(slab_bytes));
  plan.threads = worthwhile_threads(c.threads, c.connections, c.samples, c.inputs + c.outputs);
  const bool shared = tiles.room(c.outputs) * slab_bytes > 2 * kNearTile;
  plan.groups = shared ? 1 : groups_of(tiles, wants_gradient ? c.connections * kSize : 0);
  plan.sharing = sharing_of(plan.groups, tiles.count(), plan.threads, c.outputs, c.connections);
  plan.in_place = c.row_scale == nullptr && usable_in_place<T>(c.dy, tiles, slab_bytes);
  const i64 parts = parts_per_group(tiles.count(), plan.threads);
  const bool visit = !plan.in_place || c.bias_gradient != nullptr;
  plan.packing = {parts, visit && !plan.sharing.alone ? parts * tiles.count() : 0,
                  sweep_of(c.dy, c.samples, c.outputs)};
  plan.block = std::max(wants_gradient ? block_of(c.x) : 0, wants_dx ? block_of(c.dx) : 0);
  plan.distance = aligned(c.connections * kSize) / kSize;
  Workspace workspace;
  if (!plan.in_place) {
    plan.slabs = workspace.take(slab_elements(tiles, plan.sharing, plan.threads, c.outputs) * slab_bytes);
  }
  if (c.row_scale == nullptr && wants_dx && c.factors.first != nullptr) {
    plan.scaled = workspace.take(c.connections * kSize);
  }
  if (c.bias_gradient != nullptr) plan.sums = workspace.take(tiles.count() * c.outputs * kSize);
  if (wants_gradient) plan.gradients = workspace.take((plan.groups - 1) * plan.distance * kSize);
  plan.workspace_bytes = workspace.bytes();
  return plan;
}

template ForwardPlan plan_forward(const Forward<float>&, const Widths&, int);
template ForwardPlan plan_forward(const Forward<double>&, const Widths&, int);
template ColumnsPlan plan_columns(const Columns<float>&, const Widths&, int);
template ColumnsPlan plan_columns(const Columns<double>&, const Widths&, int);

}  // namespace dendnorm::cpu
