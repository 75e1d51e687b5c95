#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
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
    std::sort(order.begin(), order.end(),
              [&](auto i, auto j) { return std::pair(values[i], i) < std::pair(values[j], j); });
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
    const auto count = static_cast<std::int64_t>(numbers.size()), middle = count / 2;
    dendnorm::empty_keys(numbers.data(), middle, c.ccol.data(), c.row.data(), c.rows, c.cols);
    dendnorm::empty_keys(numbers.data() + middle, count - middle, c.ccol.data(), c.row.data(), c.rows, c.cols);
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

TEST(ColumnsInParts, CoverAllAndCountWhatIsDropped) {
  std::mt19937 random(8);
  for (int round = 0; round < 500; ++round) {
    const Case c = random_case(random);
    std::vector<std::uint8_t> dropped(c.keys.size() + 1);
    for (auto& byte : dropped) byte = random() % 3;
    const std::int64_t parts = 1 + random() % 20;
    const auto found = columns_in_parts(c.ccol.data(), c.cols, dropped.data(), parts);
    ASSERT_EQ(static_cast<std::int64_t>(found.size()), parts);
    std::int64_t end = 0;
    for (const Columns& part : found) {
      ASSERT_EQ(part.begin, end);
      ASSERT_LE(part.begin, part.end);
      const auto begin = dropped.begin();
      ASSERT_EQ(part.dropped_before, c.ccol[part.begin] - std::count(begin, begin + c.ccol[part.begin], 0));
      end = part.end;
    }
    ASSERT_EQ(end, c.cols);
  }
}

TEST(Excise, IsACopyOfWhatStays) {
  std::mt19937 random(9);
  for (int round = 0; round < 1000; ++round) {
    // Columns above 256 connections, too, which are taken in blocks.
    Case c = random_case(random);
    if (round % 20 == 0) {
      Keys keys(3 * 700);
      std::iota(keys.begin(), keys.end(), 0);
      c = case_of(700, 3, keys);
    }
    const auto nnz = static_cast<std::int64_t>(c.keys.size());
    std::vector<std::uint8_t> dropped(nnz + 1, 0);
    Keys stays;
    Indices goes;
    for (std::int64_t k = 0; k < nnz; ++k) {
      dropped[k] = std::vector<std::uint8_t>{0, 0, 1, 255}[random() % 4];
      if (dropped[k] == 0) stays.push_back(c.keys[k]);
      if (dropped[k] != 0) goes.push_back(static_cast<std::int32_t>(k));
    }
    const Case want = case_of(c.rows, c.cols, stays);
    Indices ccol(c.cols + 1, -7), row(stays.size(), -7), removed(goes.size(), -7);
    for (const Columns& part : columns_in_parts(c.ccol.data(), c.cols, dropped.data(), 1 + random() % 4)) {
      excise(c.ccol.data(), c.row.data(), part, dropped.data(), ccol.data(), row.data(), removed.data());
    }
    ASSERT_EQ(ccol, want.ccol);
    ASSERT_EQ(row, want.row);
    ASSERT_EQ(removed, goes);
  }
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
    const auto parts = columns_in_parts(c.ccol.data(), c.cols, dropped.data(), 1 + random() % 4);
    for (const Columns& part : parts) {
      ASSERT_EQ(replace_connections(c.ccol.data(), c.row.data(), c.rows, part, dropped.data(), grown.data(), count,
                                    ccol.data(), row.data(), source.data()),
                -1);
    }
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
    return replace_connections(c.ccol.data(), c.row.data(), 4, {0, 3, 0}, dropped.data(), keys.data(), 2, ccol.data(),
                               row.data(), source.data());
  };
  EXPECT_EQ(replace({0, 11}), -1);
  EXPECT_EQ(replace({1, 5}), 1);
  EXPECT_EQ(replace({2, 3}), 0);
}

TEST(Carry, FollowsTheSource) {
  std::mt19937 random(10);
  for (const int n : {0, 1, 4, 255, 256, 257, 1000}) {
    std::vector<double> values(n), fill(n);
    std::iota(values.begin(), values.end(), 10);
    std::iota(fill.begin(), fill.end(), -5000);
    Indices source(n);
    for (const int chance : {1, 4}) {  // all new, or one in so many
      for (auto& from : source) from = random() % chance == 0 ? -1 : static_cast<std::int32_t>(random() % n);
      for (const std::int64_t stride : {0, 1}) {
        std::vector<double> result(n, -7), want(n);
        carry(values.data(), source.data(), n, fill.data(), stride, result.data());
        std::int64_t fresh = 0;
        for (int k = 0; k < n; ++k) want[k] = source[k] >= 0 ? values[source[k]] : fill[stride * fresh++];
        ASSERT_EQ(result, want) << n << " entries, one in " << chance << ", stride " << stride;
      }
    }
  }
}

TEST(Carry, InPlaceIsTheSame) {
  std::mt19937 random(11);
  for (int round = 0; round < 1000; ++round) {
    const int n = 1 + static_cast<int>(random() % 40);
    std::vector<double> values(n), fill(n), want(n);
    std::iota(values.begin(), values.end(), 10);
    std::iota(fill.begin(), fill.end(), -100);
    Indices kept(n), source(n, -1);
    std::iota(kept.begin(), kept.end(), 0);
    Indices places = kept;
    std::shuffle(kept.begin(), kept.end(), random);
    std::shuffle(places.begin(), places.end(), random);
    const auto staying = static_cast<std::ptrdiff_t>(random() % (n + 1));
    std::sort(kept.begin(), kept.begin() + staying);
    std::sort(places.begin(), places.begin() + staying);
    for (std::ptrdiff_t i = 0; i < staying; ++i) source[places[i]] = kept[i];
    ASSERT_TRUE(keeps_order(source.data(), n));
    carry(values.data(), source.data(), n, fill.data(), 1, want.data());
    carry_in_order(values.data(), source.data(), n, fill.data(), 1);
    ASSERT_EQ(values, want);
  }
}

}  // namespace
}  // namespace dendnorm
