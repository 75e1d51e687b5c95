// Which kernel runs when, as docs/cuda.md says.
#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/choose.h"

namespace dendnorm::cuda {
namespace {

constexpr Device kLarge{132, 227 * 1024}, kSmall{28, 99 * 1024};

ProductShape layer(std::int64_t inputs, std::int64_t outputs, std::int64_t samples, double density, int element = 4,
                   bool packed = false) {
  const auto connections = static_cast<std::int64_t>(density * static_cast<double>(inputs * outputs));
  return {samples, outputs, inputs, connections, element, element == 8 ? 8 : 4, packed};
}

TEST(Choose, KeepsFewSamplesInSharedMemory) {
  for (const std::int64_t samples : {1, 4, 10, 16}) {
    EXPECT_TRUE(choose_product(layer(784, 1000, samples, 0.2), kLarge).slab) << samples;
  }
  EXPECT_FALSE(choose_product(layer(784, 1000, 10, 0.2, 4, true), kLarge).slab) << "what is packed is gathered";
  EXPECT_FALSE(choose_product(layer(200000, 1000, 10, 0.001), kLarge).slab) << "no slab holds so many neurons";
}

TEST(Choose, FillsSlabsForLargeBatchesOnlyWhereReuseRepaysIt) {
  EXPECT_FALSE(choose_product(layer(1000, 1000, 128, 0.04, 4, true), kLarge).slab);
  EXPECT_TRUE(choose_product(layer(1000, 1000, 128, 0.04), kLarge).slab) << "it saves the launch that packs";
  EXPECT_TRUE(choose_product(layer(1000, 1000, 1024, 0.04), kLarge).slab);
  EXPECT_TRUE(choose_product(layer(1000, 1000, 1024, 0.04, 4, true), kLarge).slab);
  EXPECT_FALSE(choose_product(layer(1000, 1000, 1024, 0.04), kSmall).slab) << "too little shared memory";
  EXPECT_FALSE(choose_product(layer(1000, 1000, 1024, 0.04), {132, 10 * 1024}).slab) << "none at all";
  EXPECT_FALSE(choose_product(layer(4096, 4096, 1024, 0.04), kLarge).slab);
}

TEST(Choose, CoversTheSamplesWithTheFewestLanes) {
  EXPECT_EQ(covering_lanes(1, 4, 32), 1);
  EXPECT_EQ(covering_lanes(5, 4, 32), 2);
  EXPECT_EQ(covering_lanes(32, 4, 32), 8);
  EXPECT_EQ(covering_lanes(33, 2, 32), 8);
  EXPECT_EQ(covering_lanes(1000, 8, 32), 32);
}

// A slab of fewer samples, where one of all lanes does not fit: with bank conflicts it still beats L2.
TEST(Choose, FallsBackToFewerLanesInSharedMemory) {
  const ProductShape shape = layer(2048, 2048, 256, 0.1, 4, true);
  ASSERT_GT(product_shared_bytes(true, kMaxSlabLanes, 4, 4, 2048), kLarge.shared_bytes);
  const ProductChoice choice = choose_product(shape, kLarge);
  EXPECT_TRUE(choice.slab);
  EXPECT_EQ(choice.lanes, 4);
  EXPECT_LT(choice.cost.seconds, choose_product(shape, {132, 10 * 1024}).cost.seconds);
}

// 70 tiles leave nearly half of the multiprocessors idle where each is one block's.
TEST(Choose, SharesTilesThatWouldLeaveMultiprocessorsIdle) {
  const ProductShape shape = layer(1000, 4096, 70 * 32, 0.1, 4, true);
  const ProductChoice choice = choose_product(shape, kLarge);
  ASSERT_TRUE(choice.slab);
  ASSERT_EQ(choice.lanes, kMaxSlabLanes);
  const std::int64_t blocks = 70 * divided_up(shape.segments, choice.rows_per_block);
  const std::int64_t waves = divided_up(blocks, kLarge.processors);
  EXPECT_GT(static_cast<double>(blocks), 0.9 * static_cast<double>(waves * kLarge.processors));
}

// And gathers fewer samples at a time, where a tile of as many as 32 lanes take is more than L2 holds.
TEST(Choose, FallsBackToFewerLanesInL2) {
  const ProductChoice choice = choose_product(layer(200'000, 200'000, 128, 1e-4, 4, true), kLarge);
  EXPECT_FALSE(choice.slab);
  EXPECT_EQ(choice.cost.level, Level::kL2);
  EXPECT_LT(choice.lanes, kMaxGatherLanes);
  EXPECT_EQ(choose_product(layer(4'000'000, 1000, 128, 1e-5, 4, true), kLarge).cost.level, Level::kMemory);
}

// What else a pass is asked for may not change bits: the choice knows sizes and the device, and gives the same twice.
TEST(Choose, PricesWhatItChooses) {
  for (const double density : {0.01, 0.1, 0.5}) {
    for (const std::int64_t samples : {1, 64, 1000}) {
      double last = 0;
      for (const std::int64_t outputs : {100, 1000, 10000}) {
        const ProductChoice choice = choose_product(layer(1000, outputs, samples, density, 4, true), kLarge);
        EXPECT_GT(choice.cost.seconds, 0.999 * last) << "more connections do not cost less";
        EXPECT_GE(choice.cost.bytes, 4 * static_cast<double>(samples * outputs * 1000) * density * 0.999);
        last = choice.cost.seconds;
      }
    }
  }
}

TEST(Choose, CutsOnlyRowsFarAboveTheMean) {
  for (const double density : {0.01, 0.1, 0.9}) {
    const ProductChoice choice = choose_product(layer(4096, 4096, 128, density, 4, true), kLarge);
    EXPECT_GE(static_cast<double>(choice.long_row), 2 * density * 4096 - 1);
    EXPECT_GE(choice.long_row, kWarps * staged_connections(choice.lanes));
  }
}

TEST(Choose, PlansAStep) {
  const StepPlan plan = plan_step(4096, 4096, 167772, 16, 4, 4, Arithmetic::kFloat32, kLarge);
  EXPECT_FALSE(plan.forward.slab);
  EXPECT_FALSE(plan.columns.fused);
  EXPECT_EQ(plan.columns.gradient.bytes, 4.0 * 167772 * 16);
  EXPECT_GT(plan.forward.cost.seconds, plan.columns.product.cost.seconds)
      << "which finds dY packed, and no permutation";
}

// One load for both gradients, where loads are what takes the time.
TEST(Choose, FusesTheGradientsOfLargeLayers) {
  const ProductShape shape = layer(4096, 4096, 1024, 0.1, 4, true);
  const ColumnsChoice choice = choose_columns(shape, kLarge);
  ASSERT_TRUE(choice.fused);
  EXPECT_GE(choice.product.lanes, kMinFusedGatherLanes);
  EXPECT_LE(gradient_parts(shape, choice.product), kMostParts);
  EXPECT_LT(choice.product.cost.seconds,
            0.8 * (choose_product(shape, kLarge).cost.seconds + sampled_cost(shape, kLarge).seconds));
  EXPECT_FALSE(choose_columns(layer(784, 1000, 4, 0.1, 4, true), kLarge).fused) << "few samples";
}

TEST(Choose, SharesRowsBetweenWarpsWhereThereAreFew) {
  EXPECT_EQ(choose_product(layer(100000, 10, 128, 0.1), kLarge).split, kWarps);
  EXPECT_EQ(choose_product(layer(4096, 4096, 128, 0.01), kLarge).split, 1);
}

// Over many shapes: what is launched fits the device, and every row belongs to a block.
TEST(Choose, FitsTheDevice) {
  for (const Device& device : {kLarge, kSmall, Device{1, 48 * 1024}}) {
    for (const std::int64_t inputs : {1, 7, 784, 1500, 1700, 4096, 100000}) {
      for (const std::int64_t outputs : {1, 10, 1000, 65536}) {
        for (const std::int64_t samples : {1, 16, 17, 64, 129, 5000}) {
          for (const int element : {2, 4, 8}) {
            const ProductShape shape = layer(inputs, outputs, samples, 0.1, element);
            const ProductChoice choice = choose_product(shape, device);
            EXPECT_LE(product_shared_bytes(choice.slab, choice.lanes, element, shape.value, inputs),
                      device.shared_bytes);
            EXPECT_GE(choice.rows_per_block, 1);
            EXPECT_EQ(choice.lanes & (choice.lanes - 1), 0);
            EXPECT_LE(choice.lanes, choice.slab ? kMaxSlabLanes : kMaxGatherLanes);
            if (choice.slab) {
              EXPECT_EQ(choice.rows_per_block % kSlabWarps, 0);
            } else {
              EXPECT_EQ(choice.rows_per_block * choice.split, kWarps);
            }
          }
        }
      }
    }
  }
}

DenseChoice dense(std::int64_t neurons, std::int64_t samples, double density, Arithmetic arithmetic,
                  const DenseRule& rule) {
  const auto connections = static_cast<std::int64_t>(density * static_cast<double>(neurons * neurons));
  const int element = arithmetic == Arithmetic::kSixteenBits ? 2 : arithmetic == Arithmetic::kFloat64 ? 8 : 4;
  return choose_dense(neurons, neurons, connections, samples, element, element == 8 ? 8 : 4, arithmetic, rule, kLarge);
}

bool all(const DenseChoice& choice) { return choice.forward && choice.input_gradient && choice.weight_gradient; }
bool any(const DenseChoice& choice) { return choice.forward || choice.input_gradient || choice.weight_gradient; }

// By itself only where every position is connected, and then where it is faster.
TEST(Choose, LeavesNothingToDenseProductsUnlessAsked) {
  EXPECT_FALSE(any(dense(4096, 1024, 0.9999, Arithmetic::kSixteenBits, {})));
  EXPECT_TRUE(all(dense(4096, 1024, 1, Arithmetic::kSixteenBits, {})));
  EXPECT_TRUE(all(dense(4096, 1024, 1, Arithmetic::kFloat32, {})));
  EXPECT_FALSE(any(dense(64, 8, 1, Arithmetic::kFloat32, {}))) << "two launches more";
}

TEST(Choose, ForcesDenseProductsFromTheDensityThatIsNamed) {
  const auto forced = [](double from) { return dense(100, 8, 0.5, Arithmetic::kFloat32, {from, false}); };
  EXPECT_TRUE(all(forced(0.5)));
  EXPECT_FALSE(any(forced(0.6)));
  EXPECT_FALSE(any(forced(2)));
  EXPECT_FALSE(any(dense(0, 8, 1, Arithmetic::kFloat32, {0, false})));
  EXPECT_FALSE(any(dense(100, 0, 1, Arithmetic::kFloat32, {0, false})));
}

// Left to the model at every density: the faster the dense product, the lower the density from which on it pays.
TEST(Choose, FindsTheCrossover) {
  const auto crossover = [](Arithmetic arithmetic) {
    double density = 1e-4;
    while (density < 1 && !all(dense(4096, 1024, density, arithmetic, {0, true}))) density *= 1.05;
    return density;
  };
  const double sixteen = crossover(Arithmetic::kSixteenBits), tf32 = crossover(Arithmetic::kTF32),
               single = crossover(Arithmetic::kFloat32);
  EXPECT_LT(sixteen, 0.05);
  EXPECT_GT(sixteen, 0.003);
  EXPECT_LT(tf32, 0.05);
  EXPECT_GT(single, 0.05);
  EXPECT_LT(single, 0.3);
}

}  // namespace
}  // namespace dendnorm::cuda
