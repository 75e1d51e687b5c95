// Which kernel runs when: functions of sizes, types and the device alone. No timing, which would change bits between
// runs, and nothing of the pattern's content, which changes under a captured graph.
//
//   product of a view with activations (forward pass; dX): the cheapest by the model of choose.cpp, of
//     slab     activations in shared memory; one launch
//     gather   activations packed feature-major, from L2
//     each with every number of lanes that covers no more than the samples
//   gradient of the values: the sampled product over packed activations (sampled.cu), or in one pass with dX, which
//     then loads for both (fused.cu)
//   each of the three as a dense matrix product (csrc/ops/cuda.cpp)  where the rule for them (DenseRule) allows it
#pragma once

#include <cstdint>

#include "core/platform.h"
#include "cuda/device.h"

namespace dendnorm::cuda {

constexpr int kSlabWarps = 32;  // of a block; those of the gathering kernel are kWarps
constexpr int kMaxGatherLanes = 32, kMaxSlabLanes = 8;
// Of fused passes, which save loads and are for many samples; and parts of the gradient, for tiles of samples that go
// on at once.
constexpr int kMinFusedGatherLanes = 8, kMinFusedSlabLanes = 4, kMostParts = 8;

struct ProductShape {
  std::int64_t samples, segments, neurons, connections;  // `neurons` of the activations that are read
  int element;                                           // bytes of an activation
  int value;                                             // bytes of a value
  bool packed;                                           // the activations lie packed already
  bool permuted = false;                                 // the values lie in another order than the connections
  bool gradient = false;                                 // the product is one of a fused pass
};

// Where activations are loaded from.
enum class Level { kShared, kL2, kMemory };

// What the model predicts. Calculated, never measured.
struct Cost {
  double seconds = 0;  // of everything that differs between the choices; not the launch of the kernel itself
  double bytes = 0;    // of activations that its loop loads
  Level level = Level::kL2;
};

struct ProductChoice {
  bool slab;
  int lanes;                    // that share a connection: each takes 16 bytes of the samples of a tile
  int split;                    // warps that share a row
  std::int64_t rows_per_block;  // that a block goes through
  std::int64_t long_row;        // a row of more connections than this keeps a whole block busy
  Cost cost;
};

ProductChoice choose_product(const ProductShape& shape, const Device& device);

// Parts of the gradient that a fused pass leaves.
std::int64_t gradient_parts(const ProductShape& shape, const ProductChoice& choice);

// dX and the gradient of the values, one after the other or fused; then `gradient` costs nothing by itself.
struct ColumnsChoice {
  ProductChoice product{};
  Cost gradient{};
  bool fused = false;
};
ColumnsChoice choose_columns(const ProductShape& shape, const Device& device);

// Of the gradient of the values by itself; `neurons` of dY, `segments` of x.
Cost sampled_cost(const ProductShape& shape, const Device& device);

// What the dense matrix products are multiplied in.
enum class Arithmetic { kFloat64, kFloat32, kTF32, kSixteenBits };

// Seconds that the model predicts for the products as dense ones, with making the dense weight, which has the type of
// the activations, and with taking the gradient of the connections out of that of every position.
struct DenseCosts {
  double forward, input_gradient, weight_gradient;
};

// A training step of batch-major activations, as the passes ask for it (passes.cu).
struct StepPlan {
  ProductChoice forward;
  ColumnsChoice columns;
  DenseCosts dense;
};
DENDNORM_VISIBLE StepPlan plan_step(std::int64_t inputs, std::int64_t outputs, std::int64_t connections,
                                    std::int64_t samples, int element, int value, Arithmetic arithmetic,
                                    const Device& device);

// Where products may be dense ones, in which absent connections are multiplied like zeros: from this density on, and of
// those the model's choice where it is asked.
struct DenseRule {
  double density = 1;
  bool asks_model = true;
};

struct DenseChoice {
  bool forward, input_gradient, weight_gradient;
};

DenseChoice choose_dense(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, std::int64_t samples,
                         int element, int value, Arithmetic arithmetic, const DenseRule& rule, const Device& device);

// The fewest lanes, a power of 2, whose 16-byte pieces cover the samples.
inline int covering_lanes(std::int64_t samples, int element, int most) {
  int lanes = 1;
  while (lanes < most && lanes * (16 / element) < samples) lanes *= 2;
  return lanes;
}

inline std::int64_t divided_up(std::int64_t x, std::int64_t y) { return (x + y - 1) / y; }

// Of the loop over a row's connections: loads that each lane has in flight, connections of such a round, and
// connections whose values and places a warp keeps in shared memory at a time, whole rounds.
DENDNORM_HD constexpr int loads_in_flight(int lanes) { return lanes >= 4 ? 8 : 4; }
DENDNORM_HD constexpr int round_connections(int lanes) { return loads_in_flight(lanes) * (32 / lanes); }
DENDNORM_HD constexpr int staged_connections(int lanes) {
  return round_connections(lanes) < 32 ? 32 : round_connections(lanes);
}

DENDNORM_HD constexpr int warps_of(bool slab) { return slab ? kSlabWarps : kWarps; }

// Shared memory of a product kernel: the slab, the staged connections, and the results of a round of rows.
constexpr std::int64_t product_shared_bytes(bool slab, int lanes, int element, int value, std::int64_t neurons) {
  const std::int64_t warps = warps_of(slab);
  return (slab ? neurons * lanes * 16 : 0) + warps * staged_connections(lanes) * (value + 4) +
         warps * (lanes * (16 / element) + 16 / value) * value;
}

// Whether values are first copied into the order of the row view: read through `perm` in the loop, each costs a
// 32-byte sector for every tile of samples.
inline bool permutes_values(const ProductShape& s, int lanes) {
  return divided_up(s.samples, lanes * (16 / s.element)) > 2;
}

}  // namespace dendnorm::cuda
