#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/pattern.h"

namespace dendnorm {
namespace {

using Indices = std::vector<std::int32_t>;

std::pair<PatternFault, std::int64_t> check(const Indices& compressed, const Indices& indices, std::int64_t size) {
  const PatternCheck found = check_pattern(compressed.data(), static_cast<std::int64_t>(compressed.size()) - 1,
                                           indices.data(), static_cast<std::int64_t>(indices.size()), size);
  return {found.fault, found.position};
}

using Found = std::pair<PatternFault, std::int64_t>;
const Found kSound{PatternFault::kNone, 0};

TEST(CheckPattern, AcceptsWhatIsSound) {
  EXPECT_EQ(check({0}, {}, 0), kSound);
  EXPECT_EQ(check({0, 0, 0}, {}, 0), kSound);
  EXPECT_EQ(check({0, 0, 0}, {}, 5), kSound);
  EXPECT_EQ(check({0, 2, 2, 5}, {0, 3, 1, 2, 3}, 4), kSound);
  EXPECT_EQ(check({0, 1, 2}, {3, 0}, 4), kSound);  // order counts within a segment only
}

TEST(CheckPattern, NamesTheFirstFault) {
  EXPECT_EQ(check({1, 2}, {0, 1}, 2), (Found{PatternFault::kStart, 0}));
  EXPECT_EQ(check({-1, 2}, {0, 1}, 2), (Found{PatternFault::kStart, 0}));
  EXPECT_EQ(check({0, 2, 1, 2}, {0, 1}, 2), (Found{PatternFault::kFalling, 2}));
  EXPECT_EQ(check({0, 2, 1}, {0}, 2), (Found{PatternFault::kFalling, 2}));
  EXPECT_EQ(check({0, 1}, {0, 1}, 2), (Found{PatternFault::kEnd, 1}));
  EXPECT_EQ(check({0, 3}, {0, 1}, 2), (Found{PatternFault::kEnd, 1}));
  EXPECT_EQ(check({0}, {0}, 2), (Found{PatternFault::kEnd, 0}));
  EXPECT_EQ(check({0, 2}, {0, 2}, 2), (Found{PatternFault::kRange, 1}));
  EXPECT_EQ(check({0, 2}, {-1, 1}, 2), (Found{PatternFault::kRange, 0}));
  EXPECT_EQ(check({0, 1}, {0}, 0), (Found{PatternFault::kRange, 0}));
  EXPECT_EQ(check({0, 3}, {0, 2, 1}, 3), (Found{PatternFault::kOrder, 2}));
  EXPECT_EQ(check({0, 1, 3}, {0, 1, 1}, 3), (Found{PatternFault::kOrder, 2}));
}

TEST(CheckPattern, ReadsNoIndexThroughABadPointer) {
  // Under AddressSanitizer these would be reads far outside.
  EXPECT_EQ(check({0, 2147483647, 2}, {0, 1}, 2).first, PatternFault::kFalling);
  EXPECT_EQ(check({0, -2147483647 - 1, 2}, {0, 1}, 2).first, PatternFault::kFalling);
  EXPECT_EQ(check({0, 2147483647}, {0, 1}, 2).first, PatternFault::kEnd);
}

struct Compressed {
  Indices pointers, indices;
};

Compressed compressed_of(const std::vector<std::vector<bool>>& mask) {
  Compressed result{{0}, {}};
  for (const auto& segment : mask) {
    for (std::size_t i = 0; i < segment.size(); ++i) {
      if (segment[i]) result.indices.push_back(static_cast<std::int32_t>(i));
    }
    result.pointers.push_back(static_cast<std::int32_t>(result.indices.size()));
  }
  return result;
}

TEST(TransposePattern, AgreesWithTheTransposedMask) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const std::size_t segments = random() % 12, size = random() % 12;
    const unsigned density = random() % 5;  // of 4: empty and full ones are among them
    std::vector<std::vector<bool>> mask(segments, std::vector<bool>(size)), turned(size, std::vector<bool>(segments));
    for (std::size_t j = 0; j < segments; ++j) {
      for (std::size_t i = 0; i < size; ++i) turned[i][j] = mask[j][i] = random() % 4 < density;
    }
    const Compressed here = compressed_of(mask), want = compressed_of(turned);
    Indices pointers(size + 1, -7), indices(here.indices.size(), -7), perm(here.indices.size(), -7);
    transpose_pattern(here.pointers.data(), static_cast<std::int64_t>(segments), here.indices.data(),
                      static_cast<std::int64_t>(size), pointers.data(), indices.data(), perm.data());
    ASSERT_EQ(pointers, want.pointers);
    ASSERT_EQ(indices, want.indices);
    for (std::size_t i = 0; i < size; ++i) {
      for (auto k = pointers[i]; k < pointers[i + 1]; ++k) {
        ASSERT_EQ(here.indices[perm[k]], static_cast<std::int32_t>(i));
        ASSERT_LE(here.pointers[indices[k]], perm[k]);
        ASSERT_LT(perm[k], here.pointers[indices[k] + 1]);
      }
    }
    std::sort(perm.begin(), perm.end());
    for (std::size_t k = 0; k < perm.size(); ++k) ASSERT_EQ(perm[k], static_cast<std::int32_t>(k));
  }
}

}  // namespace
}  // namespace dendnorm
