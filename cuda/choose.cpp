// The cost model. Everything it says is calculated: rates that others measured or the maker names, times what is
// counted. Only ratios decide, so the rates of one generation of GPUs (Hopper: H100, H200) do for all.
#include "cuda/choose.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dendnorm::cuda {
namespace {

// ---- Rates, of one streaming multiprocessor. An H100 SXM or H200 has 132 at 1.98 GHz, by NVIDIA's data sheets ----

constexpr double kProcessors = 132, kClock = 1.98e9;
// Bytes a second that many scattered loads get: 33 TB/s from shared memory and 9.6 TB/s from L2 on an H200, measured by
// github.com/RRZE-HPC/gpu-benches.
constexpr double kSharedRate = 33e12 / kProcessors, kL2Rate = 9.6e12 / kProcessors;
// How much of L2 has that rate: about 40 of 50 MB, from the same measurements.
constexpr double kL2Share = 0.8;
// Instructions a second, counted for each thread: four schedulers issue one for 32 threads in every cycle.
constexpr double kIssueRate = 128 * kClock;
// Warps on a multiprocessor from which on L2 gives that rate: 4 KB of loads in flight each, of which 10 KB would hide
// the 265 cycles of an idle L2 (gpu-benches), and some more those of a busy one.
constexpr double kWarpsForL2 = 16;
// A launch in a stream, as gpu-benches measured it on an H200; 1.3 us in a CUDA graph.
constexpr double kLaunch = 2.5e-6;
constexpr double kSector = 32;  // bytes, the least that L2 gives

// Operations a second of dense matrix products, by the data sheet of the SXM models, and the share of it that large
// ones usually reach.
double dense_rate(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kTF32: return 495e12 / kProcessors;
    case Arithmetic::kSixteenBits: return 989e12 / kProcessors;
    default: return 67e12 / kProcessors;
  }
}
constexpr double kDenseShare = 0.75;

// ---- What the machine code of the kernels takes (tests/cuda/machine_code.py) ----

// Instructions for a multiply-add in the hot loops, by the bytes of an activation; of a fused pass, which has two where
// the others have one, with the exchange of its dot products.
constexpr double instructions_per_fma(int element, bool fused) {
  if (fused) return element == 2 ? 2.4 : element == 4 ? 2.7 : 5.9;
  return element == 2 ? 2.5 : element == 4 ? 2.1 : 3.6;
}
// And for staging a connection.
constexpr double kStageInstructions = 25;

// Loads of 16 bytes from a slab go eight threads at a time, of 8 / lanes neurons at random in as many places of the
// banks: the mean of the most that meet in one place.
constexpr double bank_conflicts(int lanes) { return lanes >= 8 ? 1 : lanes == 4 ? 1.5 : lanes == 2 ? 2.125 : 2.597; }

// What all of a product's costs are made of, for one number of lanes.
struct Counts {
  double tiles;       // of samples
  double asked;       // connections with the places of the last round of each row that are empty
  double multiplied;  // multiply-adds that are issued
  double pieces;      // of 16 bytes that hold samples, over all connections

  Counts(const ProductShape& s, int lanes) {
    const int per_lane = 16 / s.element, round = round_connections(lanes);
    // Rows without connections take no round; the others half a round more than they have connections, on average.
    const double rows = static_cast<double>(std::min(s.segments, s.connections));
    const double mean = rows > 0 ? static_cast<double>(s.connections) / rows : 0;
    tiles = static_cast<double>(divided_up(s.samples, lanes * per_lane));
    asked = rows * std::max<double>(round, mean + round / 2);
    multiplied = asked * tiles * lanes * per_lane * (s.gradient ? 2 : 1);
    pieces = static_cast<double>(s.connections) * static_cast<double>(divided_up(s.samples, per_lane));
  }
};

// Seconds on the whole device.
double issued(double instructions, const Device& device) { return instructions / (kIssueRate * device.processors); }
double from_l2(double bytes, const Device& device) { return bytes / (kL2Rate * device.processors); }

// Of values and places, which every tile reads anew. Added to the rest, not hidden behind it: a warp waits for them.
double staging(const ProductShape& s, int lanes, const Counts& counts, const Device& device) {
  const double connections = static_cast<double>(s.connections);
  const bool through_perm = s.permuted && !permutes_values(s, lanes);
  const double bytes = 4 + (through_perm ? 4 + kSector : s.value);
  return from_l2(connections * counts.tiles * bytes, device) +
         issued(counts.asked * counts.tiles * kStageInstructions, device);
}

// Of copying the values into the order of the connections.
double permuting(const ProductShape& s, int lanes, const Device& device) {
  if (!s.permuted || !permutes_values(s, lanes)) return 0;
  return kLaunch + from_l2(static_cast<double>(s.connections) * (4 + kSector + s.value), device);
}

// Counted as a launch of its own also where there is one anyway (factors, sums of dY): whether a pass is asked for
// those must not change the bits of its product.
double packing(const ProductShape& s, const Device& device) {
  if (s.packed) return 0;
  return kLaunch + from_l2(2.0 * static_cast<double>(s.neurons) * static_cast<double>(s.samples) * s.element, device);
}

// Reading or writing so many bytes in order, of which `held` are in use at a time.
double streamed(double bytes, double held, const Device& device) {
  return held <= kL2Share * static_cast<double>(device.l2_bytes) ? from_l2(bytes, device) : bytes / device.memory_rate;
}

std::int64_t part_count(double tiles) { return static_cast<std::int64_t>(std::min<double>(tiles, kMostParts)); }

// Of the gradient that a fused pass makes on the way: every tile writes a part, or reads one and writes it; then they
// are added up.
double parting(const ProductShape& s, const Counts& counts, const Device& device) {
  if (!s.gradient) return 0;
  const double connections = static_cast<double>(s.connections), parts = static_cast<double>(part_count(counts.tiles));
  const double held = connections * parts * s.value;
  const double passes = 2 * counts.tiles - parts + (parts + 1);
  return streamed(connections * (passes * s.value + 4), held, device) +
         issued(connections * kStageInstructions, device);
}

// What activations are gathered from, of which `samples` are in use at a time.
Level gather_level(const ProductShape& s, std::int64_t samples, const Device& device) {
  const double held = static_cast<double>(s.neurons) * static_cast<double>(samples) * s.element;
  return held <= kL2Share * static_cast<double>(device.l2_bytes) ? Level::kL2 : Level::kMemory;
}
double gathering(double bytes, Level level, const Device& device) {
  return level == Level::kL2 ? from_l2(bytes, device) : bytes / device.memory_rate;
}

// Twice the mean, which no row reaches by chance: cut, it takes an eighth of its time. But every warp should have
// something to do.
std::int64_t long_row(const ProductShape& s, int lanes) {
  return std::max<std::int64_t>(kWarps * staged_connections(lanes), 2 * divided_up(s.connections, s.segments));
}

ProductChoice gather(const ProductShape& s, int lanes, const Device& device) {
  const Counts counts(s, lanes);
  ProductChoice choice{false, lanes, 1, 0, 0, {}};
  // Rows are cut between the warps of a block while the device has room for more warps.
  const double at_once = s.gradient ? static_cast<double>(part_count(counts.tiles)) : counts.tiles;
  const double room = device.processors * kWarpsForL2, warps = static_cast<double>(s.segments) * at_once;
  while (choice.split < kWarps && warps * choice.split < room && s.connections / s.segments / choice.split >= 64) {
    choice.split *= 2;
  }
  choice.rows_per_block = kWarps / choice.split;
  choice.long_row = choice.split == kWarps ? std::numeric_limits<std::int32_t>::max() : long_row(s, lanes);
  const Level level = gather_level(s, std::min<std::int64_t>(s.samples, lanes * (16 / s.element)), device);
  const double bytes = 16 * counts.pieces;
  const double brought = lanes == 1 ? kSector * counts.pieces : bytes;  // a lane alone asks for half a sector
  const double loop = std::max(gathering(brought, level, device),
                               issued(counts.multiplied * instructions_per_fma(s.element, s.gradient), device));
  const double busy = std::min(1.0, warps * choice.split / room);
  choice.cost = {(loop + staging(s, lanes, counts, device)) / busy + packing(s, device) + permuting(s, lanes, device) +
                     parting(s, counts, device),
                 bytes, level};
  return choice;
}

constexpr int kMostWaves = 8;

ProductChoice slab(const ProductShape& s, int lanes, const Device& device) {
  const Counts counts(s, lanes);
  ProductChoice choice{true, lanes, 1, 0, long_row(s, lanes), {}};
  const auto tiles = static_cast<std::int64_t>(counts.tiles);
  const double bytes = static_cast<double>(s.connections) * counts.tiles * lanes * 16;
  const double loaded = counts.asked * counts.tiles * lanes * 16 * bank_conflicts(lanes);
  const double loop = std::max(loaded / (kSharedRate * device.processors),
                               issued(counts.multiplied * instructions_per_fma(s.element, s.gradient), device));
  const double filling = static_cast<double>(s.neurons) * lanes * 16 / kL2Rate;
  choice.cost = {std::numeric_limits<double>::infinity(), bytes, Level::kShared};
  // One block on each multiprocessor at a time, and whole rounds of rows for it. Tiles that leave multiprocessors idle
  // may share them better in several waves of blocks with fewer rows, each of which fills a slab.
  for (std::int64_t wanted = 1; wanted <= kMostWaves; ++wanted) {
    const std::int64_t ranges = std::max<std::int64_t>(1, wanted * device.processors / tiles);
    const std::int64_t rows = divided_up(divided_up(s.segments, ranges), kSlabWarps) * kSlabWarps;
    const auto blocks = static_cast<double>(divided_up(s.segments, rows) * tiles);
    const double waves = std::ceil(blocks / device.processors);
    // The last block of a tile may have fewer rows; a wave takes as long as the others.
    const double share =
        static_cast<double>(std::min(rows, s.segments)) / static_cast<double>(s.segments) / static_cast<double>(tiles);
    const double seconds = waves * (share * device.processors * (loop + staging(s, lanes, counts, device)) + filling) +
                           permuting(s, lanes, device) + parting(s, counts, device);
    if (seconds < choice.cost.seconds) {
      choice.cost.seconds = seconds;
      choice.rows_per_block = rows;
    }
  }
  return choice;
}

}  // namespace

ProductChoice choose_product(const ProductShape& s, const Device& device) {
  const int most = covering_lanes(s.samples, s.element, kMaxGatherLanes);
  ProductChoice best{};
  best.cost.seconds = std::numeric_limits<double>::infinity();
  const auto offer = [&](const ProductChoice& choice) {
    if (choice.cost.seconds < best.cost.seconds) best = choice;
  };
  const int least = s.gradient ? kMinFusedGatherLanes : 1, least_slab = s.gradient ? kMinFusedSlabLanes : 1;
  for (int lanes = most; lanes >= least; lanes /= 2) offer(gather(s, lanes, device));
  for (int lanes = std::min(most, kMaxSlabLanes); lanes >= least_slab; lanes /= 2) {
    if (product_shared_bytes(true, lanes, s.element, s.value, s.neurons) <= device.shared_bytes) {
      offer(slab(s, lanes, device));
    }
  }
  return best;
}

// The loop over the tiles lies inside, so fewer lanes would hold no less of dY in use: the lanes that cover the
// samples.
Cost sampled_cost(const ProductShape& s, const Device& device) {
  const Counts counts(s, covering_lanes(s.samples, s.element, kMaxGatherLanes));
  const Level level = gather_level(s, s.samples, device);
  const double bytes = 16 * counts.pieces;
  const double multiplied = static_cast<double>(s.connections) * static_cast<double>(s.samples);
  const double loop = std::max(gathering(bytes, level, device),
                               issued(multiplied * instructions_per_fma(s.element, s.gradient), device));
  return {loop + issued(static_cast<double>(s.connections) * kStageInstructions, device), bytes, level};
}

std::int64_t gradient_parts(const ProductShape& s, const ProductChoice& choice) {
  return part_count(Counts(s, choice.lanes).tiles);
}

ColumnsChoice choose_columns(const ProductShape& s, const Device& device) {
  const ColumnsChoice apart{choose_product(s, device), sampled_cost(s, device)};
  ProductShape both = s;
  both.gradient = true;
  const ProductChoice fused = choose_product(both, device);
  if (fused.cost.seconds >= apart.product.cost.seconds + apart.gradient.seconds) return apart;
  return {fused, {0, 0, fused.cost.level}, true};
}

namespace {

// All of it at once.
double streamed(double bytes, const Device& device) { return streamed(bytes, bytes, device); }

DenseCosts dense_costs(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, std::int64_t samples,
                       int element, int value, Arithmetic arithmetic, const Device& device) {
  const double cells = static_cast<double>(inputs) * static_cast<double>(outputs);
  const double count = static_cast<double>(connections), batch = static_cast<double>(samples);
  const double multiplied = 2 * cells * batch / (kDenseShare * dense_rate(arithmetic) * device.processors);
  const double activations = batch * static_cast<double>(inputs + outputs) * element;
  // Factors and the dense weight take a launch each: zeros first, and then what is connected.
  const double made =
      2 * kLaunch + streamed(cells * element, device) + from_l2(count * (8 + kSector + element), device);
  const double product = made + std::max(multiplied, streamed(cells * element + activations, device));
  // Of the gradient of every position each connection reads its own, in the order of the columns.
  const double taken =
      streamed(std::min(cells * value, count * kSector), device) + from_l2(count * (4 + value), device);
  const double gradient = kLaunch + std::max(multiplied, streamed(cells * value + activations, device)) + taken;
  return {product, product, gradient};
}

}  // namespace

StepPlan plan_step(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, std::int64_t samples,
                   int element, int value, Arithmetic arithmetic, const Device& device) {
  const ProductShape columns{samples, inputs, outputs, connections, element, value, true};
  return {choose_product({samples, outputs, inputs, connections, element, value, false, true}, device),
          choose_columns(columns, device),
          dense_costs(inputs, outputs, connections, samples, element, value, arithmetic, device)};
}

DenseChoice choose_dense(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, std::int64_t samples,
                         int element, int value, Arithmetic arithmetic, const DenseRule& rule, const Device& device) {
  const double cells = static_cast<double>(inputs) * static_cast<double>(outputs);
  if (cells == 0 || samples == 0 || static_cast<double>(connections) < rule.density * cells) return {};
  if (!rule.asks_model) return {true, true, true};
  const StepPlan plan = plan_step(inputs, outputs, connections, samples, element, value, arithmetic, device);
  const DenseCosts& dense = plan.dense;
  const ProductShape columns{samples, inputs, outputs, connections, element, value, true};
  const double product = choose_product(columns, device).cost.seconds, gradient = sampled_cost(columns, device).seconds;
  const double sparse = plan.columns.product.cost.seconds + plan.columns.gradient.seconds;
  // A dense product of one leaves the other by itself.
  DenseChoice best{dense.forward < plan.forward.cost.seconds, false, false};
  double least = sparse;
  const auto offer = [&](double seconds, bool dense_product, bool dense_gradient) {
    if (seconds >= least) return;
    least = seconds;
    best.input_gradient = dense_product;
    best.weight_gradient = dense_gradient;
  };
  offer(dense.input_gradient + gradient, true, false);
  offer(product + dense.weight_gradient, false, true);
  offer(dense.input_gradient + dense.weight_gradient, true, true);
  return best;
}

}  // namespace dendnorm::cuda
