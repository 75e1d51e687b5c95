// How a call of a kernel is cut: into tiles of the batch and shares of the threads, and what workspace it needs. The
// caller makes the plan once, allocates its workspace_bytes, and runs the kernel with both.
//
// What decides the order of an addition follows from the shape alone: the tiles, their groups and the parts of a single
// sample. Threads and addresses decide the rest, and so no bit of a result.
//
// Compiled once, for any processor, and used by kernels that are compiled for a newer one. So no function here may be
// copied into their objects, of which the linker might keep one: what is not declared only is always inlined.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layer.h"
#include "core/platform.h"
#include "cpu/kernels.h"

namespace dendnorm::cpu {

constexpr std::int64_t kGrain = 16;   // neurons: work is cut between multiples of it
constexpr std::int64_t kBlock = 128;  // neurons whose tiles are held between a product and its transposition, at most
constexpr std::int64_t kAlign = 64;   // bytes

// ---- Tiles of the batch ----

// `full` tiles of the widest width and up to two narrower ones; a single sample is a tile of width 1.
struct Tiles {
  std::int64_t samples, full;
  int width;
  int tail[2];
  int tails;

  DENDNORM_INLINE std::int64_t count() const { return full + tails; }
  DENDNORM_INLINE std::int64_t wide() const { return full + (tails > 0); }  // with the narrower ones as one
  DENDNORM_INLINE int width_of(std::int64_t t) const { return t < full ? width : tail[t - full]; }
  // The first sample.
  DENDNORM_INLINE std::int64_t begin(std::int64_t t) const { return t <= full ? t * width : full * width + tail[0]; }
  // At most the width; the rest is padding.
  DENDNORM_INLINE std::int64_t samples_of(std::int64_t t) const {
    const std::int64_t left = samples - begin(t);
    return left < width_of(t) ? left : width_of(t);
  }
  // Samples and padding.
  DENDNORM_INLINE std::int64_t total() const { return full * width + tail[0] + tail[1]; }
  // Elements of the largest tile.
  DENDNORM_INLINE std::int64_t room(std::int64_t neurons) const { return count() == 0 ? 0 : width_of(0) * neurons; }
};

Tiles tiles_of(std::int64_t samples, int widest, int narrowest = 4);

// ---- Shares of the threads ----

// Where the share of thread `thread` of so many begins among the items.
DENDNORM_INLINE std::int64_t share_begin(std::int64_t items, std::int64_t thread, int threads) {
  return items * thread / threads;
}

// Where part `part` of `parts` of the neurons begins: whole grains.
std::int64_t grain_begin(std::int64_t neurons, std::int64_t part, std::int64_t parts);

// Where part `part` of `parts` of the segments of a view begins: equal cost, whole grains.
std::int64_t part_begin(const std::int32_t* start, std::int64_t segments, std::int64_t part, std::int64_t parts);

// How threads share equal groups of tiles. Where a share comes out as whole groups, a thread packs each tile as it
// comes to it, always into the same memory, which stays in its cache. A single tile that is soon packed every thread
// packs for itself. All other tiles are packed by all threads before anyone reads them.
struct Sharing {
  std::int64_t parts;  // of every group
  bool alone;

  // Whether a thread that began with item `first` and packs alone has yet to pack the tiles of `item`.
  DENDNORM_INLINE bool packs(std::int64_t item, std::int64_t first) const { return parts == 1 || item == first; }
};

// Tiles that all threads pack together: so many parts of each, and none where each packs alone or nobody packs.
struct Packing {
  std::int64_t parts, pieces;
  std::int64_t step;  // neurons at a time
};

// ---- Plans ----

// A part of the workspace, in bytes.
struct Region {
  std::int64_t begin, bytes;
};

// How a row finds its values: through its permutation; in order, each by itself; in order, four at a time. Four at a
// time are fewer loads, but more instructions that wait where the samples come from afar.
enum class Order { kThrough, kOne, kFour };

struct ForwardPlan {
  Tiles tiles;
  int threads;
  Sharing sharing;  // of the tiles
  Packing packing;  // of x
  bool in_place;    // x is a slab already
  Order order;
  std::int64_t spread;           // 0, or the parts of the columns, which spread their inputs over the outputs
  std::int64_t block;            // neurons of y at a time
  Region slabs, sums, permuted;  // of x; of the parts of the columns; the values in row order
  std::size_t workspace_bytes;
};

struct ColumnsPlan {
  Tiles tiles;
  int threads, groups;
  Sharing sharing;                        // of the groups
  Packing packing;                        // of dy
  bool in_place;                          // dy is a slab already
  std::int64_t block;                     // neurons of x and dx at a time
  std::int64_t distance;                  // elements between the gradients of two groups
  Region slabs, scaled, sums, gradients;  // of dy; the values times factors; for the bias; of groups but the first
  std::size_t workspace_bytes;

  DENDNORM_INLINE std::int64_t first_tile(std::int64_t group) const {
    return group == groups ? tiles.count() : tiles.wide() / groups * group;
  }
};

// The plan depends on where the activations lie, too, but not on what they or the tables hold. An element of a slab has
// `slab_bytes`: those of T or, where activations stay bfloat16, 2.
template <class T>
ForwardPlan plan_forward(const Forward<T>& f, const Widths& widths, int slab_bytes = sizeof(T));
template <class T>
ColumnsPlan plan_columns(const Columns<T>& c, const Widths& widths, int slab_bytes = sizeof(T));

}  // namespace dendnorm::cpu
