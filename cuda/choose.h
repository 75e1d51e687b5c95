// Which kernel runs when: functions of shapes, types and the device alone. No timing, which would change bits between
// runs, and nothing of the pattern's content, which changes under a captured graph.
//
//   product of a view with activations (forward pass; dX)
//     slab     activations in shared memory; one launch        up to 16 samples, or reuse that pays for filling it
//     gather   activations packed feature-major, from L2       else
//   gradient of the values: always the sampled product over packed activations (sampled.cu)
//   all products as a dense matrix product (csrc/ops/cuda.cpp)  from a density on that the caller gives
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "cuda/device.h"

namespace dendnorm::cuda {

constexpr int kSlabWarps = 32;  // of a block; those of the gathering kernel are kWarps
constexpr int kMaxGatherLanes = 32, kMaxSlabLanes = 8;
// A row of more connections than this keeps a whole block of the gathering kernel busy instead of a warp.
constexpr std::int64_t kLongRow = 1024;

struct ProductShape {
  std::int64_t samples, segments, neurons, connections;  // `neurons` of the activations that are read
  int element;                                           // bytes of an activation
  int value;                                             // bytes of a value
  bool packed;                                           // the activations lie packed already
};

struct ProductChoice {
  bool slab;
  int lanes;                    // that share a connection: each takes 16 bytes of the samples of a tile
  int split;                    // warps that share a row
  std::int64_t rows_per_block;  // that a block goes through
};

// The fewest lanes, a power of 2, whose 16-byte pieces cover the samples.
inline int covering_lanes(std::int64_t samples, int element, int most) {
  int lanes = 1;
  while (lanes < most && lanes * (16 / element) < samples) lanes *= 2;
  return lanes;
}

inline std::int64_t divided_up(std::int64_t x, std::int64_t y) { return (x + y - 1) / y; }

// Of the loop over a row's connections: loads that each lane has in flight, and connections whose values and places a
// warp keeps in shared memory at a time, whole rounds of such loads.
DENDNORM_HD constexpr int loads_in_flight(int lanes) { return lanes >= 4 ? 8 : 4; }
DENDNORM_HD constexpr int staged_connections(int lanes) {
  const int round = loads_in_flight(lanes) * (32 / lanes);
  return round < 32 ? 32 : round;
}

// Shared memory of a product kernel: the slab, the staged connections, and the results of a round of rows.
constexpr std::int64_t product_shared_bytes(bool slab, int lanes, int element, int value, std::int64_t neurons) {
  const std::int64_t warps = slab ? kSlabWarps : kWarps;
  return (slab ? neurons * lanes * 16 : 0) + warps * staged_connections(lanes) * (value + 4) +
         warps * (lanes * (16 / element) + 16 / value) * value;
}

inline ProductChoice choose_product(const ProductShape& s, const Device& device) {
  const int per_lane = 16 / s.element;
  ProductChoice choice{false, covering_lanes(s.samples, s.element, kMaxSlabLanes), 1, 0};
  const bool fits = product_shared_bytes(true, choice.lanes, s.element, s.value, s.neurons) <= device.shared_bytes;
  const std::int64_t tile = choice.lanes * per_lane, tiles = divided_up(s.samples, tile);
  // Every block fills a slab of its own. That is repaid by connections per neuron and block, M B d / (SMs tile) (the
  // 400 is 3 of them on 132 SMs), and at few samples by the launches that packing would take.
  const double density = static_cast<double>(s.connections) / (static_cast<double>(s.segments) * s.neurons);
  const bool reused = static_cast<double>(s.segments) * s.samples * density >= 400.0 * tile;
  if (fits && (reused || (s.samples <= 16 && !s.packed))) {
    choice.slab = true;
    const std::int64_t blocks = device.processors > tiles ? device.processors / tiles : 1;
    choice.rows_per_block = divided_up(divided_up(s.segments, blocks), kSlabWarps) * kSlabWarps;
    return choice;
  }
  choice.lanes = covering_lanes(s.samples, s.element, kMaxGatherLanes);
  // Long rows are cut between the warps of a block while the device has room for more warps.
  const std::int64_t warps = s.segments * divided_up(s.samples, choice.lanes * per_lane);
  while (choice.split < kWarps && warps * choice.split < device.processors * 16 &&
         s.connections / s.segments / choice.split >= 64) {
    choice.split *= 2;
  }
  choice.rows_per_block = kWarps / choice.split;
  return choice;
}

// Whether values are first copied into the order of the row view: read through `perm` in the loop, each costs a
// 32-byte sector for every tile of samples.
inline bool permutes_values(const ProductShape& s, const ProductChoice& choice) {
  return divided_up(s.samples, choice.lanes * (16 / s.element)) > 2;
}

// Whether a product is left to the dense matrix product, where absent connections are multiplied like zeros.
inline bool prefers_dense(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, double threshold) {
  const double cells = static_cast<double>(inputs) * static_cast<double>(outputs);
  return cells > 0 && static_cast<double>(connections) >= threshold * cells;
}

}  // namespace dendnorm::cuda
