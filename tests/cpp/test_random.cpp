#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "core/random.h"

namespace dendnorm {
namespace {

std::vector<std::uint32_t> words(Block block) { return {block.word, block.word + 4}; }

// Wilson and Hilferty: the cube root of a chi-square value is nearly normal.
double chi_square_z(double statistic, double degrees) {
  const double spread = 2 / (9 * degrees);
  return (std::cbrt(statistic / degrees) - (1 - spread)) / std::sqrt(spread);
}

TEST(Philox, GivesTheKnownAnswersOfItsAuthors) {
  using Words = std::vector<std::uint32_t>;
  EXPECT_EQ(words(philox({{0, 0, 0, 0}}, 0, 0)), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint32_t all = 0xffffffff;
  EXPECT_EQ(words(philox({{all, all, all, all}}, all, all)), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Stream, EveryPartOfItsNameCounts) {
  std::set<std::uint64_t> seen;
  const std::uint64_t high = std::uint64_t{1} << 40;
  for (std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, high}) {
    for (std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1}, high}) {
      for (std::uint32_t layer : {0u, 1u, 0x80000000u}) {
        for (Purpose purpose : {Purpose::kPosition, Purpose::kValue}) {
          for (std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}, high}) {
            seen.insert(bits_at(stream_of(seed, step, layer, purpose), index).first);
          }
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), 3u * 3 * 3 * 2 * 3);
}

double relative_error(double got, long double want) {
  return want == 0 ? std::fabs(got) : static_cast<double>(std::fabs((got - want) / want));
}

TEST(Normal, LogarithmIsExactToRounding) {
  const std::uint64_t last = (std::uint64_t{1} << 53) - 1;
  const Stream stream = stream_of(1, 2, 3, Purpose::kValue);
  for (std::uint64_t i = 0; i < 200000; ++i) {
    // Of every magnitude, and close to both ends.
    const std::uint64_t drawn = bits_at(stream, i).first;
    const std::uint64_t some = (drawn & last) >> (drawn >> 58) % 53;
    for (const std::uint64_t odd : {some | 1, last - (some & ~std::uint64_t{1})}) {
      const long double want = std::log(static_cast<long double>(odd) * 0x1p-53L);
      ASSERT_LT(relative_error(log_of_fraction(odd), want), 5e-16) << odd;
    }
  }
  EXPECT_EQ(log_of_fraction(last), -0x1p-53);
}

TEST(Normal, SineAndCosineAreExactToRounding) {
  const long double pi = 3.14159265358979323846264338327950288L;
  const Stream stream = stream_of(1, 2, 3, Purpose::kValue);
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const std::uint64_t bits = bits_at(stream, i).first;
    const long double in_quadrant = ((bits & 0xFFFFFFFFFFFFFull) + 0.5L) * 0x1p-52L - 0.5L;
    const long double angle = pi / 2 * (static_cast<long double>(bits >> 62) + in_quadrant);
    const Direction direction = direction_of(bits);
    ASSERT_LT(std::fabs(direction.cosine - std::cos(angle)), 3e-16L) << bits;
    ASSERT_LT(std::fabs(direction.sine - std::sin(angle)), 3e-16L) << bits;
  }
}

TEST(Normal, HasTheMomentsAndTheQuantilesOfTheStandardNormal) {
  const Stream stream = stream_of(7, 0, 0, Purpose::kValue);
  const int pairs = 500000, cells = 64;
  double sum = 0, square = 0, fourth = 0, product = 0;
  std::vector<double> count(cells);
  for (int i = 0; i < pairs; ++i) {
    const NormalPair pair = normal_pair(stream, i);
    product += pair.first * pair.second;
    for (const double z : {pair.first, pair.second}) {
      sum += z;
      square += z * z;
      fourth += z * z * z * z;
      const double probability = 0.5 * std::erfc(-z / std::sqrt(2.0));
      ++count[std::min(cells - 1, static_cast<int>(cells * probability))];
    }
  }
  const double n = 2.0 * pairs;
  EXPECT_LT(std::fabs(sum / std::sqrt(n)), 4.5);
  EXPECT_LT(std::fabs((square - n) / std::sqrt(2 * n)), 4.5);
  EXPECT_LT(std::fabs((fourth - 3 * n) / std::sqrt(96 * n)), 4.5);
  EXPECT_LT(std::fabs(product / std::sqrt(pairs)), 4.5);
  double statistic = 0;
  for (const double c : count) statistic += (c - n / cells) * (c - n / cells) / (n / cells);
  EXPECT_LT(std::fabs(chi_square_z(statistic, cells - 1)), 4.5);
}

TEST(Normal, BitsAreTheSameOnEveryMachine) {
  // A hash of the bits: any machine, compiler or flag that rounds differently changes it.
  const Stream stream = stream_of(123456789, 42, 3, Purpose::kValue);
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (int i = 0; i < 10000; ++i) {
    const NormalPair pair = normal_pair(stream, i);
    for (const double z : {pair.first, pair.second}) {
      std::uint64_t bits;
      std::memcpy(&bits, &z, sizeof bits);
      hash = (hash ^ bits) * 0x100000001B3ull;
    }
  }
  EXPECT_EQ(hash, 7484098071252783184ull);
}

TEST(Bijection, MapsEverySmallRangeOntoItself) {
  for (std::uint64_t size = 1; size <= 300; ++size) {
    const Bijection shuffled(size, stream_of(size, 0, 0, Purpose::kPosition));
    std::vector<std::uint64_t> images(size);
    shuffled.images_of(0, images.data(), static_cast<std::int64_t>(size));
    std::vector<bool> hit(size);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t to = shuffled(i);
      ASSERT_LT(to, size);
      ASSERT_FALSE(hit[to]) << "size " << size;
      ASSERT_EQ(images[i], to);
      hit[to] = true;
    }
  }
}

TEST(Bijection, StaysInRangeAndApartInLargeOnes) {
  for (const std::uint64_t size : {std::uint64_t{1000003}, (std::uint64_t{1} << 40) + 1, (std::uint64_t{1} << 52) - 1,
                                   std::uint64_t{0x7FFFFFFE} * 0x7FFFFFFE, std::uint64_t{1} << 62}) {
    const Bijection shuffled(size, stream_of(5, 0, 0, Purpose::kPosition));
    std::set<std::uint64_t> seen;
    std::vector<double> eighths(8);
    const int draws = 50000;
    for (int i = 0; i < draws; ++i) {
      // From both ends: large values must come back, too.
      const std::uint64_t to = shuffled(i % 2 == 0 ? i : size - i);
      ASSERT_LT(to, size);
      ASSERT_TRUE(seen.insert(to).second);
      ++eighths[static_cast<int>(static_cast<long double>(to) / size * 8)];
    }
    double statistic = 0;
    for (const double c : eighths) statistic += (c - draws / 8.0) * (c - draws / 8.0) / (draws / 8.0);
    EXPECT_LT(std::fabs(chi_square_z(statistic, 7)), 4.5) << "size " << size;
  }
}

// Small ranges are where a Feistel network is weakest: over many keys every ordered pair of images, and for the
// smallest every permutation, must be equally likely.
TEST(Bijection, PairsAreUniformOverKeys) {
  for (const int size : {2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 60}) {
    const int pairs = size * (size - 1), draws = 200 * pairs;
    for (const int distance : {1, size / 2}) {
      std::vector<double> count(size * size);
      for (int draw = 0; draw < draws; ++draw) {
        const Bijection shuffled(size, stream_of(11, draw, 0, Purpose::kPosition));
        count[shuffled(0) * size + shuffled(distance)] += 1;
      }
      double statistic = 0;
      for (int a = 0; a < size; ++a) {
        for (int b = 0; b < size; ++b) {
          if (a != b) statistic += (count[a * size + b] - 200) * (count[a * size + b] - 200) / 200;
        }
      }
      EXPECT_LT(std::fabs(chi_square_z(statistic, pairs - 1)), 4.5) << "size " << size << ", distance " << distance;
    }
  }
}

TEST(Bijection, SetsAreUniformOverKeys) {
  // Which of the values the first half takes: what a drawn set of positions is.
  for (const int size : {4, 5, 6, 8, 9, 10}) {
    std::map<std::uint64_t, double> count;
    int sets = 1;
    for (int i = 0; i < size / 2; ++i) sets = sets * (size - i) / (i + 1);
    const int draws = 400 * sets;
    for (int draw = 0; draw < draws; ++draw) {
      const Bijection shuffled(size, stream_of(draw, 3, 1, Purpose::kPosition));
      std::uint64_t set = 0;
      for (int i = 0; i < size / 2; ++i) set |= std::uint64_t{1} << shuffled(i);
      count[set] += 1;
    }
    double statistic = 400.0 * (sets - static_cast<int>(count.size()));
    for (const auto& [set, c] : count) statistic += (c - 400) * (c - 400) / 400;
    EXPECT_LT(std::fabs(chi_square_z(statistic, sets - 1)), 4.5) << "size " << size;
  }
}

}  // namespace
}  // namespace dendnorm
