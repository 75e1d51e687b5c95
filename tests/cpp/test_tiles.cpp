// How the batch is cut into tiles and work into shares (cpu/plan.h), without any plan.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "cpu/plan.h"

namespace dendnorm::cpu {
namespace {

using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr int kMostThreads = 128;

// ---- Tiles ----

TEST(Tiles, CoverEverySampleOnce) {
  for (const int widest : {4, 8, 16, 32, 64}) {
    for (i64 samples = 0; samples <= 700; ++samples) {
      SCOPED_TRACE(testing::Message() << samples << " samples, tiles of " << widest);
      const Tiles tiles = tiles_of(samples, widest);
      i64 next = 0, total = 0;
      for (i64 t = 0; t < tiles.count(); ++t) {
        const int width = tiles.width_of(t);
        ASSERT_EQ(tiles.begin(t), next);
        ASSERT_GT(tiles.samples_of(t), 0);
        ASSERT_LE(tiles.samples_of(t), width);
        ASSERT_LE(width, widest);
        ASSERT_LE(width, tiles.width_of(0)) << "the first is the largest";
        ASSERT_EQ(width & (width - 1), 0) << "a power of two";
        ASSERT_TRUE(width >= 4 || samples == 1);
        // Nothing is padded but the last tile, and that is the narrowest that holds its samples.
        ASSERT_TRUE(tiles.samples_of(t) == width || t + 1 == tiles.count());
        ASSERT_TRUE(2 * tiles.samples_of(t) > width || width == 4);
        next += tiles.samples_of(t);
        total += width;
      }
      ASSERT_EQ(next, samples);
      ASSERT_EQ(tiles.total(), total);
      ASSERT_EQ(tiles.wide(), (samples == 1 ? 1 : (samples + widest - 1) / widest));
      ASSERT_EQ(tiles.room(7), samples == 0 ? 0 : 7 * tiles.width_of(0));
    }
  }
}

// ---- Shares ----

TEST(Shares, CoverAllItemsOnce) {
  for (int threads = 1; threads <= kMostThreads; ++threads) {
    for (const i64 items : {0, 1, 2, 7, 64, 127, 1000}) {
      ASSERT_EQ(share_begin(items, 0, threads), 0);
      ASSERT_EQ(share_begin(items, threads, threads), items);
      for (int t = 0; t < threads; ++t) {
        const i64 share = share_begin(items, t + 1, threads) - share_begin(items, t, threads);
        ASSERT_TRUE(share == items / threads || share == (items + threads - 1) / threads);
      }
    }
  }
}

TEST(Shares, CutNeuronsBetweenGrains) {
  for (int parts = 1; parts <= kMostThreads; ++parts) {
    for (const i64 neurons : {0, 1, 15, 16, 17, 784, 1000, 33000}) {
      ASSERT_EQ(grain_begin(neurons, 0, parts), 0);
      ASSERT_EQ(grain_begin(neurons, parts, parts), neurons);
      for (int part = 0; part < parts; ++part) {
        const i64 begin = grain_begin(neurons, part, parts), end = grain_begin(neurons, part + 1, parts);
        ASSERT_LE(begin, end);
        ASSERT_TRUE(begin % kGrain == 0 || begin == neurons);
      }
    }
  }
}

TEST(Shares, CutSegmentsAtEqualCost) {
  std::mt19937 random(2);
  for (const i64 segments : {0, 1, 16, 100, 1000}) {
    std::vector<i32> start{0};
    i32 longest = 0;
    for (i64 s = 0; s < segments; ++s) {
      const i32 length = random() % 3 == 0 ? 0 : static_cast<i32>(random() % 50);
      start.push_back(start.back() + length);
      longest = std::max(longest, length);
    }
    const auto cost = [&](i64 s) { return start[s] + 4 * s; };
    for (int parts = 1; parts <= kMostThreads; ++parts) {
      ASSERT_EQ(part_begin(start.data(), segments, 0, parts), 0);
      ASSERT_EQ(part_begin(start.data(), segments, parts, parts), segments);
      for (int part = 0; part < parts; ++part) {
        const i64 begin = part_begin(start.data(), segments, part, parts);
        const i64 end = part_begin(start.data(), segments, part + 1, parts);
        ASSERT_LE(begin, end);
        ASSERT_TRUE(begin % kGrain == 0 || begin == segments);
        // Up to half a grain and a segment at either end, and what the division by the parts leaves over.
        ASSERT_LE(cost(end) - cost(begin), cost(segments) / parts + (kGrain + 2) * (longest + 4) + parts);
      }
    }
  }
}

}  // namespace
}  // namespace dendnorm::cpu
