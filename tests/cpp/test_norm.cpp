#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "core/norm.h"
#include "cpu/norm.h"
#include "threads.h"

namespace dendnorm {
namespace {

using Values = std::vector<double>;

struct At {
  const Values& v;
  double operator()(std::int64_t k) const { return v[static_cast<std::size_t>(k)]; }
};

Sequence<At> in_order(const Values& v) { return {static_cast<std::int64_t>(v.size()), {v}}; }

Row measure(const Norm& norm, const Values& v) {
  return measure_row(norm, static_cast<std::int64_t>(v.size()), in_order(v));
}

double length_of(const Values& v, double p) { return length(in_order(v), p); }

// The formulas as they are printed, in long double, whose exponent has room for every power in these tests.
long double plain_length(const Values& v, double p) {
  long double sum = 0;
  for (const double x : v) sum += std::pow(std::fabs(static_cast<long double>(x)), static_cast<long double>(p));
  return std::pow(sum, 1 / static_cast<long double>(p));
}

long double plain_weight(const Norm& norm, const Values& v, std::size_t k, double e) {
  const long double n = static_cast<long double>(v.size());
  return e /
         (std::pow(n, static_cast<long double>(norm.a)) *
          std::pow(plain_length(v, norm.p), static_cast<long double>(norm.b))) *
         v[k];
}

Values drawn(std::mt19937& random, std::size_t n, double scale = 1) {
  std::normal_distribution<double> normal;
  Values v(n);
  for (double& x : v) x = scale * normal(random);
  return v;
}

void expect_close(double got, long double want, double tolerance) {
  EXPECT_NEAR(got, static_cast<double>(want), tolerance * std::fabs(static_cast<double>(want)));
}

TEST(Power, IsPowForWholeExponentsAndOthers) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double y : {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 16.0, 17.0, 2.5, 0.5, 1.0 / 3, -1.0, -2.0}) {
    for (const double x : {1e-15, 0.3, 1.0, 1.7, 1e15}) {
      EXPECT_NEAR(power(x, y) / std::pow(x, y), 1.0, 1e-14) << x << "^" << y;
    }
    EXPECT_EQ(power(0.0, y), std::pow(0.0, y)) << y;
    EXPECT_EQ(power(infinity, y), std::pow(infinity, y)) << y;
    EXPECT_EQ(std::isnan(power(std::nan(""), y)), y != 0) << y;
  }
}

TEST(Length, IsThePNorm) {
  std::mt19937 random(1);
  for (const double p : {1.0, 1.5, 2.0, 3.0, 3.7, 5.0, 12.0}) {
    for (const std::size_t n : {1, 2, 5, 17, 200}) {
      const Values v = drawn(random, n);
      expect_close(length_of(v, p), plain_length(v, p), 1e-13);
    }
  }
}

TEST(Length, HoldsWherePowersLeaveTheRange) {
  for (const double p : {1.0, 1.5, 2.0, 3.0, 20.0, 300.0}) {
    for (const double scale : {1e-300, 1e-160, 1e-20, 1e20, 1e160, 1e300}) {
      const double got = length_of({3 * scale, -4 * scale, 0}, p);
      expect_close(got / scale, plain_length({3, 4}, p), 1e-12);
    }
  }
  // A small value beside a large one, at the edge of the range where the sum is formed again.
  expect_close(length_of({1e-110, 1e-100}, 2), 1e-100L * std::sqrt(1 + 1e-20L), 1e-14);
  expect_close(length_of({1e150, 1e145}, 2), 1e150L * std::sqrt(1 + 1e-10L), 1e-14);
}

TEST(Length, OfNothingAndOfZerosIsZero) {
  EXPECT_EQ(length_of({}, 2), 0);
  EXPECT_EQ(length_of({0, -0.0, 0}, 1), 0);
  EXPECT_EQ(length_of({0, 0}, 3.5), 0);
}

TEST(Length, PassesOnWhatIsNotFinite) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(length_of({1, -infinity}, 2), infinity);
  EXPECT_TRUE(std::isnan(length_of({1, std::nan("")}, 2)));
}

TEST(SignedPower, IsZeroAtZeroForEveryExponent) {
  for (const double q : {0.0, 0.5, 1.0, 2.0, 3.3}) EXPECT_EQ(signed_power(0, q), 0);
  EXPECT_EQ(signed_power(-3, 0), -1);
  EXPECT_EQ(signed_power(-3, 2), -9);
  EXPECT_EQ(signed_power(-4, 0.5), -2);
}

TEST(MeasureRow, IsDeadWithoutConnectionsAndWithoutLength) {
  const Norm l2{0, 1, 2}, l0{1, 0, 2};
  EXPECT_EQ(measure(l2, {}).inverse_d, 0);
  EXPECT_EQ(measure(l0, {}).inverse_d, 0);
  EXPECT_EQ(measure(l2, {0, 0}).inverse_d, 0);
  EXPECT_EQ(measure(l0, {0, 0}).inverse_d, 0.5);  // a connection counts, whatever its value
  EXPECT_EQ(measure(Norm{}, {5, 6}).inverse_d, 1);
}

// The gradients of C = sum G w, against central differences of the printed formula in long double.
TEST(Gradients, AreThoseOfTheFormula) {
  std::mt19937 random(2);
  std::uniform_real_distribution<double> exponent(0, 2), power_of(1, 6);
  for (int repeat = 0; repeat < 200; ++repeat) {
    Norm norm{exponent(random), exponent(random), power_of(random)};
    if (repeat % 5 == 0) norm.b = 0;
    if (repeat % 7 == 0) norm.p = 1 + repeat % 4;
    const Values v = drawn(random, 1 + repeat % 9), g = drawn(random, v.size());
    const double e = 0.5 + repeat % 3;
    const Row row = measure(norm, v);

    long double pull = 0, plain = 0;
    for (std::size_t k = 0; k < v.size(); ++k) {
      pull += static_cast<long double>(g[k]) * v[k] / row.length;
      plain += g[k] * plain_weight(norm, v, k, 1);
    }
    const double pull_of_row = static_cast<double>(pull);
    EXPECT_NEAR(excitability_gradient(row, pull_of_row), static_cast<double>(plain),
                1e-12 * (1 + std::fabs(static_cast<double>(plain))));

    for (std::size_t k = 0; k < v.size(); ++k) {
      if (std::fabs(v[k]) < 1e-2) continue;  // |v| has no derivative at 0
      const double step = 1e-6;
      Values up = v, down = v;
      up[k] += step;
      down[k] -= step;
      long double difference = 0;
      for (std::size_t m = 0; m < v.size(); ++m) {
        difference += g[m] * (plain_weight(norm, up, m, e) - plain_weight(norm, down, m, e));
      }
      const double want = static_cast<double>(difference / (static_cast<long double>(up[k]) - down[k]));
      const double got = e * row.inverse_d * (g[k] - pulled(norm, row, v[k], pull_of_row));
      EXPECT_NEAR(got, want, 1e-6 * (1 + std::fabs(want))) << "a " << norm.a << " b " << norm.b << " p " << norm.p;
    }
  }
}

// ---- A whole layer (cpu/norm.h) ----

// Rows of chosen lengths over values in shuffled order, as they lie when they are in column order.
struct Rows {
  std::vector<std::int32_t> start{0}, perm, row;
  std::int64_t count() const { return static_cast<std::int64_t>(start.size()) - 1; }
};

Rows shuffled_rows(std::mt19937& random, const std::vector<int>& lengths) {
  Rows rows;
  for (const int n : lengths) rows.start.push_back(rows.start.back() + n);
  for (std::int32_t k = 0; k < rows.start.back(); ++k) rows.perm.push_back(k);
  std::shuffle(rows.perm.begin(), rows.perm.end(), random);
  rows.row.resize(rows.perm.size());
  for (std::int32_t i = 0; i < rows.count(); ++i) {
    for (std::int32_t k = rows.start[i]; k < rows.start[i + 1]; ++k) rows.row[rows.perm[k]] = i;
  }
  return rows;
}

template <class T>
class LayerNorm : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LayerNorm, Scalars);

TYPED_TEST(LayerNorm, AgreesWithTheRuleOfOneRow) {
  using T = TypeParam;
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
  std::mt19937 random(3);
  std::vector<int> lengths(97);
  for (int& n : lengths) n = static_cast<int>(random() % 9);
  lengths[5] = 700;  // one row longer than all others
  lengths[96] = 0;
  const Rows rows = shuffled_rows(random, lengths);
  const std::size_t nnz = rows.perm.size();
  for (const Norm norm :
       {Norm{0, 0, 2}, Norm{1, 0, 2}, Norm{0, 1, 1}, Norm{0, 1, 2}, Norm{1, 1, 2}, Norm{.5, 1.3, 3.7}}) {
    for (const int mode : {0, 1, 2}) {  // excitability: none, shared, per row
      for (const int count : {1, 3}) {
        std::vector<T> v(nnz), g(nnz), e(rows.count());
        for (T& x : v) x = static_cast<T>(std::normal_distribution<double>()(random));
        for (T& x : g) x = static_cast<T>(std::normal_distribution<double>()(random));
        for (T& x : e) x = static_cast<T>(1 + std::uniform_real_distribution<double>()(random));
        for (std::int32_t k = rows.start[7]; k < rows.start[8]; ++k) v[rows.perm[k]] = 0;  // a dead row, where b != 0
        const cpu::Layer<T> layer{rows.count(),   {rows.start.data(), nullptr, rows.perm.data()},
                                  v.data(),       {mode == 0 ? nullptr : e.data(), mode == 2},
                                  norm,           cpu::threads_of(count),
                                  rows.row.data()};
        std::vector<T> first(rows.count()), w(nnz), dv(nnz);
        std::vector<double> de(rows.count());
        std::vector<Row> measured(rows.count());
        cpu::measure_rows(layer, measured.data());
        EXPECT_FALSE(cpu::row_factors(layer, measured.data(), first.data(), static_cast<T*>(nullptr)));
        cpu::effective_weight(layer, w.data());
        cpu::norm_gradient(layer, measured.data(), false, g.data(), dv.data(), de.data());
        std::vector<T> in_place = g;
        cpu::norm_gradient(layer, measured.data(), false, in_place.data(), in_place.data(), nullptr);
        EXPECT_EQ(in_place, dv);

        for (std::int64_t i = 0; i < rows.count(); ++i) {
          Values row_v, row_g;
          for (std::int32_t k = rows.start[i]; k < rows.start[i + 1]; ++k) {
            row_v.push_back(v[rows.perm[k]]);
            row_g.push_back(g[rows.perm[k]]);
          }
          const Row row = measure(norm, row_v);
          const double excitability = mode == 0 ? 1 : static_cast<double>(e[mode == 2 ? i : 0]);
          const double factor = excitability * row.inverse_d;
          EXPECT_NEAR(first[i], factor, tolerance * factor);
          const bool dead = row.inverse_d == 0;
          double pull = 0, size = 0;
          for (std::size_t k = 0; k < row_v.size() && !dead; ++k) {
            pull += row_g[k] * row_v[k] / row.length;
            size += std::fabs(row_g[k] * row_v[k] / row.length);
          }
          EXPECT_NEAR(de[i], row.inverse_d * row.length * pull, tolerance * (1 + row.inverse_d * row.length * size));
          for (std::size_t k = 0; k < row_v.size(); ++k) {
            const std::int32_t at = rows.perm[rows.start[i] + k];
            EXPECT_NEAR(w[at], factor * row_v[k], tolerance * (1 + std::fabs(factor * row_v[k])));
            EXPECT_NEAR(dv[at], factor * (row_g[k] - (dead ? 0 : pulled(norm, row, row_v[k], pull))),
                        tolerance * (1 + factor * (std::fabs(row_g[k]) + norm.b * size)));
          }
        }
      }
    }
  }
}

// Gradients that come with the factors of their rows give what the others give; large enough for every thread to get
// some, with the same bits for any number of threads.
TYPED_TEST(LayerNorm, TakesScaledGradients) {
  using T = TypeParam;
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
  std::mt19937 random(9);
  std::vector<int> lengths(600);
  for (int& n : lengths) n = static_cast<int>(random() % 140);
  const Rows rows = shuffled_rows(random, lengths);
  const std::size_t nnz = rows.perm.size();
  std::vector<T> v(nnz), g(nnz), e(rows.count());
  for (T& x : v) x = static_cast<T>(std::normal_distribution<double>()(random));
  for (T& x : g) x = static_cast<T>(std::normal_distribution<double>()(random));
  for (T& x : e) x = static_cast<T>(1 + std::uniform_real_distribution<double>()(random));
  for (const Norm norm :
       {Norm{1, 0, 2}, Norm{0, 1, 1}, Norm{0, 1, 2}, Norm{1, 1, 3}, Norm{.5, 1.3, 3.7}, Norm{0, 1, 9}}) {
    std::vector<T> want, want_scaled;
    std::vector<double> want_de;
    for (const int count : {1, 2, 3, 5}) {
      const cpu::Layer<T> layer{rows.count(),   {rows.start.data(), nullptr, rows.perm.data()},
                                v.data(),       {e.data(), true},
                                norm,           cpu::threads_of(count),
                                rows.row.data()};
      std::vector<Row> measured(rows.count());
      cpu::measure_rows(layer, measured.data());
      std::vector<T> dv(nnz), scaled(nnz);
      std::vector<double> de(rows.count()), de_scaled(rows.count());
      cpu::norm_gradient(layer, measured.data(), false, g.data(), dv.data(), de.data());
      for (std::size_t k = 0; k < nnz; ++k) {
        const Row& row = measured[static_cast<std::size_t>(rows.row[k])];
        scaled[k] = static_cast<T>(e[static_cast<std::size_t>(rows.row[k])] * row.inverse_d * g[k]);
      }
      std::vector<T> dv_scaled(nnz);
      cpu::norm_gradient(layer, measured.data(), true, scaled.data(), dv_scaled.data(), de_scaled.data());
      for (std::size_t k = 0; k < nnz; ++k) EXPECT_NEAR(dv_scaled[k], dv[k], tolerance * (1 + std::fabs(dv[k])));
      for (std::size_t i = 0; i < de.size(); ++i)
        EXPECT_NEAR(de_scaled[i], de[i], 50 * tolerance * (1 + std::fabs(de[i])));
      if (count == 1) {
        want = dv, want_scaled = dv_scaled, want_de = de;
      }
      EXPECT_EQ(dv, want);
      EXPECT_EQ(dv_scaled, want_scaled);
      EXPECT_EQ(de, want_de);
    }
  }
}

TEST(FactorOf, IsZeroOnlyInDeadRows) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const double e : {1.0, -2.0, 0.0, infinity, -infinity, nan}) EXPECT_EQ(factor_of(e, 0), 0);
  EXPECT_EQ(factor_of(3, 0.5), 1.5);
  EXPECT_EQ(factor_of(infinity, 0.5), infinity);
  EXPECT_TRUE(std::isnan(factor_of(nan, 0.5)));
}

// Rows 0 and 2 are dead: without connections and, where b != 0, of zeros. Row 3 has a finite e where each has its own.
TEST(DeadRows, AreZeroWhateverTheirExcitability) {
  const double infinity = std::numeric_limits<double>::infinity();
  std::mt19937 random(6);
  const Rows rows = shuffled_rows(random, {0, 3, 2, 3});
  const auto of_row = [&](std::int64_t i, std::int32_t k) {
    return static_cast<std::size_t>(rows.perm[rows.start[i] + k]);
  };
  for (const double special : {infinity, -infinity, std::numeric_limits<double>::quiet_NaN()}) {
    for (const bool per_row : {false, true}) {
      for (const double b : {0.0, 1.0}) {
        std::vector<float> v{1, 2, 3, 4, 5, 6, 7, 8}, g(8, 1);
        for (std::int32_t k = 0; k < 2; ++k) v[of_row(2, k)] = 0;
        const auto e = static_cast<float>(special);
        const std::vector<float> all{e, e, e, 2};
        const cpu::Layer<float> layer{4,
                                      {rows.start.data(), nullptr, rows.perm.data()},
                                      v.data(),
                                      {all.data(), per_row},
                                      {1, b, 2},
                                      cpu::threads_of(1),
                                      rows.row.data()};
        std::vector<float> first(4), second(4), w(8), dv(8);
        std::vector<double> de(4);
        std::vector<Row> measured(4);
        cpu::measure_rows(layer, measured.data());
        cpu::row_factors(layer, measured.data(), first.data(), second.data());
        cpu::effective_weight(layer, w.data());
        cpu::norm_gradient(layer, measured.data(), false, g.data(), dv.data(), de.data());
        EXPECT_EQ(first[0], 0);
        EXPECT_EQ(de[0], 0);
        EXPECT_FALSE(std::isfinite(first[1]));
        EXPECT_FALSE(std::isfinite(w[of_row(1, 0)]));
        for (const double part : de) EXPECT_TRUE(std::isfinite(part));
        EXPECT_TRUE(b == 0 || first[2] == 0);
        for (std::int32_t k = 0; k < 2 && b != 0; ++k) {
          EXPECT_EQ(w[of_row(2, k)], 0);
          EXPECT_EQ(dv[of_row(2, k)], 0);
        }
        for (std::int32_t k = 0; k < 3 && per_row; ++k) {
          EXPECT_TRUE(std::isfinite(w[of_row(3, k)]));
          EXPECT_TRUE(std::isfinite(dv[of_row(3, k)]));
        }
      }
    }
  }
}

TEST(RowFactors, SplitWhatOneFloatCannotHold) {
  std::mt19937 random(4);
  const Rows rows = shuffled_rows(random, {2, 2, 2});
  std::vector<float> v(6);
  const float sizes[] = {1e-30F, 1.F, 1e30F};
  for (int i = 0; i < 3; ++i) {
    for (int k = 2 * i; k < 2 * i + 2; ++k) v[rows.perm[k]] = sizes[i];
  }
  std::vector<float> first(3), second(3);
  const Norm squared{0, 2, 2};  // factors of about 1e60, 1 and 1e-60
  const cpu::Layer<float> layer{
      3, {rows.start.data(), nullptr, rows.perm.data()}, v.data(), {}, squared, cpu::threads_of(1), rows.row.data()};
  std::vector<Row> measured(3);
  cpu::measure_rows(layer, measured.data());
  EXPECT_TRUE(cpu::row_factors(layer, measured.data(), first.data(), second.data()));
  EXPECT_EQ(second[1], 1);
  for (int i = 0; i < 3; ++i) {
    const double want = 1 / (2 * static_cast<double>(sizes[i]) * sizes[i]);
    EXPECT_NEAR(static_cast<double>(first[i]) * second[i], want, 1e-6 * want);
  }
}

}  // namespace
}  // namespace dendnorm
