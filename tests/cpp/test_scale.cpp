#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/norm.h"
#include "core/scale.h"

namespace dendnorm {
namespace {

using Values = std::vector<double>;

const Norm kNorms[] = {{0, 0, 2},   {1, 0, 2},   {0.5, 0, 2},    {0, 1, 2},      {1, 1, 2},    {0, 1, 1},
                       {0, 0.5, 2}, {1, 0.5, 3}, {0.3, -1, 2.5}, {-0.5, 1.7, 4}, {0, 1, 40.0}, {2, 2, 1}};

// Weights of rows in any order; row 2 has none, and row 4 zeros only.
struct Weights {
  std::int64_t rows = 6;
  std::vector<std::int32_t> row;
  Values w;

  explicit Weights(unsigned seed, double scale = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const int counts[] = {5, 1, 0, 9, 2, 4};
    for (std::int32_t i = 0; i < 6; ++i) row.insert(row.end(), static_cast<std::size_t>(counts[i]), i);
    std::shuffle(row.begin(), row.end(), random);
    for (const std::int32_t i : row) w.push_back(i == 4 ? 0 : scale * normal(random));
  }

  Values of(std::int64_t i, const Values& all) const {
    Values found;
    for (std::size_t k = 0; k < row.size(); ++k) {
      if (row[k] == i) found.push_back(all[k]);
    }
    return found;
  }
};

struct Raw {
  RawOutcome outcome;
  Values v, e;

  double of_row(std::int64_t i) const { return e[e.size() > 1 ? static_cast<std::size_t>(i) : 0]; }
};

Raw raw_of(const Norm& norm, const Weights& weights, bool variable, const Values& given = {}, double start = 7) {
  Raw raw;
  raw.v.resize(weights.w.size());
  raw.e.resize(!given.empty() ? given.size() : variable ? static_cast<std::size_t>(weights.rows) : 1);
  raw.outcome = raw_values(norm, variable, weights.rows, static_cast<std::int64_t>(weights.w.size()),
                           weights.row.data(), weights.w.data(), given.empty() ? nullptr : given.data(),
                           static_cast<std::int64_t>(given.size()), start, raw.v.data(), raw.e.data());
  return raw;
}

struct At {
  const Values& v;
  double operator()(std::int64_t k) const { return v[static_cast<std::size_t>(k)]; }
};

// The formula itself, as the kernels have it.
void expect_represents(const Norm& norm, const Weights& weights, const Raw& raw) {
  ASSERT_EQ(raw.outcome.fault, RawFault::kNone);
  for (std::int64_t i = 0; i < weights.rows; ++i) {
    const Values v = weights.of(i, raw.v), w = weights.of(i, weights.w);
    const auto n = static_cast<std::int64_t>(v.size());
    const double factor = factor_of(raw.of_row(i), measure_row(norm, n, Sequence<At>{n, {v}}).inverse_d);
    for (std::size_t k = 0; k < v.size(); ++k) EXPECT_NEAR(factor * v[k], w[k], 1e-9 * std::fabs(w[k]));
  }
}

TEST(RawValues, AreTheInverseOfTheFormulaWithAnExcitabilityForEachRow) {
  for (const Norm& norm : kNorms) {
    for (const double scale : {1.0, 1e-20, 1e20}) {
      const Weights weights(1, scale);
      const Raw raw = raw_of(norm, weights, true);
      expect_represents(norm, weights, raw);
      for (std::size_t k = 0; k < raw.v.size(); ++k) {
        if (weights.row[k] == 4) continue;
        EXPECT_EQ(raw.v[k], weights.w[k]);  // each e is its row's D
      }
      EXPECT_EQ(raw.e[2], 7);
      EXPECT_EQ(raw.e[4], norm.b == 0 ? 7 : 0);
    }
  }
}

// A row of zeros stands still where v is 0 and b is not: neither v nor e has a derivative.
TEST(RawValues, GiveARowOfZerosADirection) {
  for (const Norm& norm : kNorms) {
    const Weights weights(1);
    const Values v = weights.of(4, raw_of(norm, weights, true).v);
    double length = 0;
    for (const double x : v) length += std::pow(std::fabs(x), norm.p);
    EXPECT_NEAR(length, norm.b == 0 ? 0 : 1, 1e-12);
    Weights zeros = weights;
    for (double& w : zeros.w) w = 0;
    const Raw shared = raw_of(norm, zeros, false);
    expect_represents(norm, zeros, shared);
    EXPECT_EQ(shared.e[0], norm.b == 0 ? 7 : 0);
    for (const double x : shared.v) EXPECT_EQ(x > 0, norm.b != 0);
  }
}

TEST(RawValues, AreTheInverseOfTheFormulaWithOneExcitability) {
  for (const Norm& norm : kNorms) {
    if (norm.b == 1) continue;
    const Weights weights(2);
    const Raw raw = raw_of(norm, weights, false);
    expect_represents(norm, weights, raw);
    // Where no length plays a part, e stays where it starts.
    EXPECT_TRUE(norm.b != 0 || raw.e[0] == 7);
    EXPECT_GT(raw.e[0], 0);
  }
}

TEST(RawValues, AreTheInverseOfTheFormulaWithAGivenExcitability) {
  for (const Norm& norm : kNorms) {
    if (norm.b == 1) continue;
    const Weights weights(3);
    for (const Values& given : {Values{2.5}, Values{-0.3}, Values{1, -2, 0, 3, 0, 0.5}}) {
      const Raw raw = raw_of(norm, weights, given.size() > 1, given);
      EXPECT_EQ(raw.e, given);
      expect_represents(norm, weights, raw);
    }
  }
}

TEST(RawValues, WithLengthsThatPlayNoPartNeedTheRightExcitability) {
  for (const Norm& norm : {Norm{0, 1, 2}, Norm{1, 1, 2}, Norm{0, 1, 3}}) {
    const Weights weights(4);
    const Raw free = raw_of(norm, weights, true);
    Values given = free.e;
    for (double& e : given) e = -e;
    expect_represents(norm, weights, raw_of(norm, weights, true, given));
    given[3] *= 1.01;
    const RawOutcome outcome = raw_of(norm, weights, true, given).outcome;
    EXPECT_EQ(outcome.fault, RawFault::kLength);
    EXPECT_EQ(outcome.row, 3);
    EXPECT_NEAR(outcome.needed / outcome.e, 1 / 1.01, 1e-9);
    // One for all can have rows of one length.
    EXPECT_EQ(raw_of(norm, weights, false).outcome.fault, RawFault::kLength);
    Weights even = weights;
    for (std::size_t k = 0; k < even.w.size(); ++k) {
      if (even.w[k] != 0) even.w[k] /= free.of_row(even.row[k]);
    }
    const Raw shared = raw_of(norm, even, false);
    expect_represents(norm, even, shared);
    EXPECT_NEAR(shared.e[0], 1, 1e-12);
  }
}

TEST(RawValues, CannotStandForWeightsWithNoExcitability) {
  const Weights weights(5);
  EXPECT_EQ(raw_of({1, 0, 2}, weights, false, {0}).outcome.fault, RawFault::kZero);
  const RawOutcome outcome = raw_of({1, 0, 2}, weights, true, {1, 0, 1, 1, 1, 1}).outcome;
  EXPECT_EQ(outcome.fault, RawFault::kZero);
  EXPECT_EQ(outcome.row, 1);
}

TEST(RawValues, OfNothingLeaveTheExcitabilityWhereItStarts) {
  Weights nothing(6);
  nothing.row.clear();
  nothing.w.clear();
  for (const Norm& norm : kNorms) {
    for (const bool variable : {false, true}) {
      const Raw raw = raw_of(norm, nothing, variable);
      EXPECT_EQ(raw.outcome.fault, RawFault::kNone);
      for (const double e : raw.e) EXPECT_EQ(e, 7);
    }
  }
}

TEST(ValueDeviation, GivesOutputsTheVarianceOfTheInputs) {
  EXPECT_DOUBLE_EQ(value_deviation(100, 1), 0.1);
  EXPECT_DOUBLE_EQ(value_deviation(16, 2), 0.5);
  EXPECT_DOUBLE_EQ(value_deviation(0.5, 1), 1);  // fewer than one connection in the mean
  EXPECT_DOUBLE_EQ(value_deviation(0, 3), 3);
}

TEST(ExcitabilityStart, IsTheDOfAnOrdinaryNeuron) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const std::int64_t n = 20000;
  for (const Norm& norm :
       {Norm{0, 0, 2}, Norm{1, 0, 2}, Norm{0, 1, 2}, Norm{1, 1, 2}, Norm{0, 1, 1}, Norm{0.3, 0.7, 3}}) {
    for (const double deviation : {1.0, 0.01}) {
      Values v(static_cast<std::size_t>(n));
      for (double& x : v) x = deviation * normal(random);
      const double d = 1 / measure_row(norm, n, Sequence<At>{n, {v}}).inverse_d;
      EXPECT_NEAR(excitability_start(norm, static_cast<double>(n), deviation) / d, 1, 0.05);
    }
  }
  EXPECT_EQ(excitability_start({1, 1, 2}, 0, 1), 1);
}

}  // namespace
}  // namespace dendnorm
