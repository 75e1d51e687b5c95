#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "core/pattern.h"
#include "core/rewire.h"

namespace dendnorm {
namespace {

using Indices = std::vector<std::int32_t>;
using Keys = std::vector<std::int64_t>;

template <class T>
class Smallest : public testing::Test {};
using Floats = testing::Types<float, double>;
TYPED_TEST_SUITE(Smallest, Floats);

TYPED_TEST(Smallest, OrderIsThatOfTheValues) {
  using Limits = std::numeric_limits<TypeParam>;
  const std::vector<TypeParam> rising{
      -Limits::infinity(),  Limits::lowest(), -1, -Limits::min(), -Limits::denorm_min(), 0,
      Limits::denorm_min(), Limits::min(),    1,  Limits::max(),  Limits::infinity()};
  for (std::size_t i = 1; i < rising.size(); ++i) EXPECT_LT(order_of(rising[i - 1]), order_of(rising[i])) << i;
  EXPECT_EQ(order_of(TypeParam{0}), order_of(-TypeParam{0}));
  for (const TypeParam value : rising) EXPECT_FALSE(is_nan(value));
  EXPECT_TRUE(is_nan(Limits::quiet_NaN()));
  EXPECT_TRUE(is_nan(-Limits::quiet_NaN()));
  EXPECT_TRUE(is_nan(Limits::signaling_NaN()));
}

TYPED_TEST(Smallest, AreThoseOfAStableSort) {
  using Limits = std::numeric_limits<TypeParam>;
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TypeParam> values(random() % 60);
    const unsigned kinds = 1 + random() % 12;  // few: many ties
    for (auto& value : values) {
      switch (const unsigned kind = random() % kinds) {
        case 0: value = random() % 2 == 0 ? TypeParam{0} : -TypeParam{0}; break;
        case 1: value = Limits::infinity(); break;
        case 2: value = Limits::denorm_min() * static_cast<TypeParam>(random() % 3); break;
        case 3: value = std::nextafter(TypeParam{1}, static_cast<TypeParam>(random() % 3)); break;
        default: value = static_cast<TypeParam>(kind) - 7;
      }
    }
    const auto n = static_cast<std::int64_t>(values.size());
    const std::int64_t k = random() % (n + 1);
    std::vector<std::int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return values[i] < values[j]; });
    std::vector<char> want(n, 0);
    for (std::int64_t i = 0; i < k; ++i) want[order[i]] = 1;
    const auto chosen = std::make_unique<bool[]>(n + 1);
    mark_smallest(values.data(), n, k, chosen.get());
    for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(chosen[i], want[i] != 0) << "k " << k << ", position " << i;
  }
}

struct Case {
  std::int64_t rows, cols;
  Keys keys;  // of the connections
  Indices ccol, row;
};

Case case_of(std::int64_t rows, std::int64_t cols, const Keys& keys) {
  Case made{rows, cols, keys, Indices(cols + 1), {}};
  for (const std::int64_t key : keys) {
    made.row.push_back(static_cast<std::int32_t>(key % rows));
    ++made.ccol[key / rows + 1];
  }
  std::partial_sum(made.ccol.begin(), made.ccol.end(), made.ccol.begin());
  return made;
}

Case random_case(std::mt19937& random) {
  const std::int64_t rows = 1 + random() % 12, cols = 1 + random() % 12;
  Keys all(rows * cols);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  const unsigned kind = random() % 6;
  all.resize(kind == 0 ? 0 : kind == 1 ? all.size() : kind == 2 ? all.size() - 1 : random() % (all.size() + 1));
  std::sort(all.begin(), all.end());
  return case_of(rows, cols, all);
}

Keys empty_keys(const Case& c) {
  Keys result;
  for (std::int64_t key = 0; key < c.rows * c.cols; ++key) {
    if (!std::binary_search(c.keys.begin(), c.keys.end(), key)) result.push_back(key);
  }
  return result;
}

TEST(EmptyKey, NumbersTheEmptyPositionsInOrder) {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    const Case c = random_case(random);
    const Keys empty = empty_keys(c);
    for (std::size_t i = 0; i < empty.size(); ++i) {
      ASSERT_EQ(empty_key(static_cast<std::int64_t>(i), c.ccol.data(), c.row.data(), c.rows, c.cols), empty[i]);
    }
  }
}

TEST(EmptyKeys, AreThoseOfASearchForEach) {
  std::mt19937 random(15);
  for (int round = 0; round < 500; ++round) {
    const Case c = random_case(random);
    const Keys empty = empty_keys(c);
    Keys numbers, want;
    for (std::size_t i = 0; i < empty.size(); ++i) {
      if (random() % 3 != 0) continue;
      numbers.push_back(static_cast<std::int64_t>(i));
      want.push_back(empty[i]);
    }
    dendnorm::empty_keys(numbers.data(), static_cast<std::int64_t>(numbers.size()), c.ccol.data(), c.row.data(),
                         c.rows);
    ASSERT_EQ(numbers, want);
  }
}

TEST(SortNumbers, SortsByAllBits) {
  std::mt19937_64 random(16);
  for (const int bits : {1, 10, 11, 12, 22, 23, 33, 62}) {
    for (const int count : {0, 1, 2, 1000}) {
      std::vector<std::uint64_t> numbers(count), other(count);
      for (auto& number : numbers) number = random() & ((std::uint64_t{1} << bits) - 1);
      auto want = numbers;
      std::sort(want.begin(), want.end());
      const std::uint64_t* sorted = sort_numbers(numbers.data(), other.data(), count, bits);
      ASSERT_TRUE(std::equal(want.begin(), want.end(), sorted)) << bits << " bits, " << count;
    }
  }
}

TEST(EmptyKey, CountsInSixtyFourBits) {
  // 2^31 - 2 rows and 2^20 columns, one connection in the first position of the first column.
  const std::int64_t rows = 0x7FFFFFFE, cols = 1 << 20;
  const Case c = case_of(rows, cols, {0});
  EXPECT_EQ(empty_key(0, c.ccol.data(), c.row.data(), rows, cols), 1);
  EXPECT_EQ(empty_key(rows * cols - 2, c.ccol.data(), c.row.data(), rows, cols), rows * cols - 1);
}

TEST(ReplaceConnections, KeepsTheOrderAndTellsWhereEachCameFrom) {
  std::mt19937 random(6);
  for (int round = 0; round < 1000; ++round) {
    const Case c = random_case(random);
    const auto nnz = static_cast<std::int64_t>(c.keys.size());
    std::vector<std::uint8_t> dropped(nnz + 1, 0);
    Keys free = empty_keys(c);
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < nnz; ++k) {
      // 2 and 255 count as true, as any byte but 0.
      dropped[k] = std::vector<std::uint8_t>{0, 0, 1, 2, 255}[random() % 5];
      if (dropped[k] != 0) {
        free.push_back(c.keys[k]);  // empty once it is dropped, so it may grow again
        ++count;
      }
    }
    std::shuffle(free.begin(), free.end(), random);
    Keys grown(free.begin(), free.begin() + count);
    std::sort(grown.begin(), grown.end());
    Indices ccol(c.cols + 1, -7), row(nnz, -7), source(nnz, -7);
    ASSERT_EQ(replace_connections(c.ccol.data(), c.row.data(), c.rows, c.cols, dropped.data(), grown.data(), count,
                                  ccol.data(), row.data(), source.data()),
              -1);
    ASSERT_EQ(check_pattern(ccol.data(), c.cols, row.data(), nnz, c.rows).fault, PatternFault::kNone);
    Keys left = grown;
    for (std::int64_t column = 0; column < c.cols; ++column) {
      for (auto k = ccol[column]; k < ccol[column + 1]; ++k) {
        const std::int64_t key = column * c.rows + row[k];
        if (source[k] == -1) {
          ASSERT_EQ(key, left.front());  // the new ones in order
          left.erase(left.begin());
        } else {
          ASSERT_EQ(key, c.keys[source[k]]);
          ASSERT_EQ(dropped[source[k]], 0);
        }
      }
    }
    ASSERT_TRUE(left.empty());
  }
}

TEST(ReplaceConnections, FindsAKeyThatIsOccupied) {
  const Case c = case_of(4, 3, {0, 2, 5, 11});
  const std::vector<std::uint8_t> dropped{1, 0, 0, 1};
  Indices ccol(4), row(4), source(4);
  const auto replace = [&](const Keys& keys) {
    return replace_connections(c.ccol.data(), c.row.data(), 4, 3, dropped.data(), keys.data(), 2, ccol.data(),
                               row.data(), source.data());
  };
  EXPECT_EQ(replace({0, 11}), -1);
  EXPECT_EQ(replace({1, 5}), 1);
  EXPECT_EQ(replace({2, 3}), 0);
}

TEST(Carry, FollowsTheSource) {
  const std::vector<double> values{10, 11, 12, 13}, fill{-1, -2};
  const Indices source{-1, 0, 3, -1};
  std::vector<double> result(4);
  carry(values.data(), source.data(), 4, fill.data(), 1, result.data());
  EXPECT_EQ(result, (std::vector<double>{-1, 10, 13, -2}));
  carry(values.data(), source.data(), 4, fill.data(), 0, result.data());
  EXPECT_EQ(result, (std::vector<double>{-1, 10, 13, -1}));
}

}  // namespace
}  // namespace dendnorm
