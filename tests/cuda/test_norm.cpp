// The normalisation of a whole layer on the device, run here: against the printed formulas in long double, and where
// it must have the CPU's bits, against the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "../cpp/cases.h"
#include "../cpp/threads.h"
#include "cpu/norm.h"
#include "cuda/kernels.h"
#include "cuda_on_host.h"

namespace dendnorm::cuda {
namespace {

using cases::Guarded;
using cases::i32;
using cases::i64;

enum class Mode { kNone, kShared, kPerRow };

// Rows of chosen lengths over values in shuffled order, as they lie when they are in column order. Row 1 is of zeros.
template <class T>
struct Rows {
  Rows(std::mt19937& random, const std::vector<int>& lengths, double spread) {
    std::normal_distribution<double> normal;
    for (const int n : lengths) start.push_back(start.back() + n);
    perm.resize(start.back());
    std::iota(perm.begin(), perm.end(), 0);
    std::shuffle(perm.begin(), perm.end(), random);
    for (int k = 0; k < start.back(); ++k) {
      values.push_back(static_cast<T>(normal(random) * std::pow(10.0, spread * normal(random))));
      gradient.push_back(static_cast<T>(normal(random)));
    }
    for (int k = start[1]; k < start[2]; ++k) values[perm[k]] = 0;
    for (i64 i = 0; i < count(); ++i) e.push_back(static_cast<T>(5 * normal(random)));
  }
  i64 count() const { return static_cast<i64>(start.size()) - 1; }
  template <class L>
  L layer(const Norm& norm, Mode mode) const {
    L layer{};
    layer.rows = count();
    layer.view = {start.data(), nullptr, perm.data()};
    layer.values = values.data();
    layer.excitability = {mode == Mode::kNone ? nullptr : e.data(), mode == Mode::kPerRow};
    layer.norm = norm;
    return layer;
  }
  Layer<T> on_device(const Norm& norm, Mode mode) const {
    auto layer = this->layer<Layer<T>>(norm, mode);
    layer.connections = static_cast<i64>(values.size());
    return layer;
  }
  double excitability(i64 row, Mode mode) const {
    return mode == Mode::kNone ? 1 : static_cast<double>(e[mode == Mode::kPerRow ? row : 0]);
  }

  std::vector<i32> start{0}, perm;
  std::vector<T> values, gradient, e;
};

// One row by the formulas: D, and sum_j G_ij v_ij.
struct Plain {
  long double d = 0, length = 1, dot = 0, dot_size = 0;
  bool dead = true;
};

template <class T>
Plain plain_row(const Rows<T>& rows, const Norm& norm, i64 i) {
  const i32 begin = rows.start[i], end = rows.start[i + 1];
  Plain plain;
  long double sum = 0;
  for (i32 k = begin; k < end; ++k) {
    const long double v = rows.values[rows.perm[k]], g = rows.gradient[rows.perm[k]];
    sum += std::pow(std::fabs(v), static_cast<long double>(norm.p));
    plain.dot += g * v;
    plain.dot_size += std::fabs(g * v);
  }
  plain.length = std::pow(sum, 1 / static_cast<long double>(norm.p));
  plain.dead = begin == end || (norm.b != 0 && sum == 0);
  if (!plain.dead) {
    plain.d = std::pow(static_cast<long double>(end - begin), static_cast<long double>(norm.a));
    if (norm.b != 0) plain.d *= std::pow(plain.length, static_cast<long double>(norm.b));
  }
  return plain;
}

struct Results {
  std::vector<double> factors, inverse, w, dv, de;
  bool operator==(const Results&) const = default;
};

template <class T>
Results results_of(const Rows<T>& rows, const Norm& norm, Mode mode) {
  const auto n = static_cast<std::size_t>(rows.count()), nnz = rows.values.size();
  const Layer<T> layer = rows.on_device(norm, mode);
  const Guarded factors(n * sizeof(Factor<T>)), inverse(n * 8), w(nnz * sizeof(T)), dv(nnz * sizeof(T)), de(n * 8),
      in_place(nnz * sizeof(T)), measured(n * sizeof(Row)), each(n * sizeof(T));
  EXPECT_EQ(row_factors(layer, factors.as<Factor<T>>(), inverse.as<double>(), nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(row_factors(layer, static_cast<Factor<T>*>(nullptr), nullptr, measured.as<Row>(), nullptr), cudaSuccess);
  EXPECT_EQ(effective_weight(layer, w.as<T>(), nullptr), cudaSuccess);
  const RowGradients<T> parts{nullptr, de.as<double>()};
  EXPECT_EQ(norm_gradient(layer, rows.gradient.data(), nullptr, dv.as<T>(), parts, nullptr), cudaSuccess);
  std::copy(rows.gradient.begin(), rows.gradient.end(), in_place.as<T>());
  EXPECT_EQ(norm_gradient(layer, in_place.as<T>(), measured.as<Row>(), in_place.as<T>(), RowGradients<T>{}, nullptr),
            cudaSuccess);
  EXPECT_TRUE(std::equal(dv.as<T>(), dv.as<T>() + nnz, in_place.as<T>())) << "in place, from rows measured before";
  EXPECT_EQ(
      norm_gradient<T>(layer, rows.gradient.data(), measured.as<Row>(), nullptr, {each.as<T>(), nullptr}, nullptr),
      cudaSuccess);
  for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(each.as<T>()[i], static_cast<T>(de.as<double>()[i]));
  for (const Guarded* guarded : {&factors, &inverse, &w, &dv, &de, &in_place, &measured, &each})
    guarded->expect_whole();
  Results results;
  for (std::size_t i = 0; i < n; ++i) {
    const Factor<T> factor = factors.as<Factor<T>>()[i];
    results.factors.push_back(static_cast<double>(factor.first) * factor.second);
  }
  results.inverse.assign(inverse.as<double>(), inverse.as<double>() + n);
  results.w.assign(w.as<T>(), w.as<T>() + nnz);
  results.dv.assign(dv.as<T>(), dv.as<T>() + nnz);
  results.de.assign(de.as<double>(), de.as<double>() + n);
  return results;
}

void expect_close(double got, long double want, double tolerance, long double size) {
  EXPECT_NEAR(got, static_cast<double>(want), tolerance * static_cast<double>(size) + 1e-300);
}

template <class T>
void check(const Rows<T>& rows, const Norm& norm, Mode mode) {
  SCOPED_TRACE(testing::Message() << "a " << norm.a << ", b " << norm.b << ", p " << norm.p << ", mode "
                                  << static_cast<int>(mode));
  cuda_on_host::set_order(3);
  const Results got = results_of(rows, norm, mode);
  cuda_on_host::set_order(4);
  EXPECT_TRUE(results_of(rows, norm, mode) == got) << "blocks and threads in another order";
  const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-12;
  for (i64 i = 0; i < rows.count(); ++i) {
    const Plain plain = plain_row(rows, norm, i);
    const long double e = rows.excitability(i, mode), inverse = plain.dead ? 0 : 1 / plain.d, factor = e * inverse;
    expect_close(got.inverse[i], inverse, 1e-12, inverse);
    expect_close(got.factors[i], factor, tolerance, std::fabs(factor));
    expect_close(got.de[i], plain.dead ? 0 : plain.dot / plain.d, 1e-12, inverse * plain.dot_size);
    for (i32 k = rows.start[i]; k < rows.start[i + 1]; ++k) {
      const i32 at = rows.perm[k];
      const long double v = rows.values[at], g = rows.gradient[at];
      expect_close(got.w[at], factor * v, tolerance, std::fabs(factor * v));
      if (plain.dead) {
        EXPECT_EQ(got.dv[at], 0);
        continue;
      }
      long double pull = 0, size = 0;
      if (norm.b != 0) {
        const long double slope = std::copysign(v == 0 ? 0 : std::pow(std::fabs(v), norm.p - 1.0L), v) /
                                  std::pow(plain.length, static_cast<long double>(norm.p));
        pull = norm.b * plain.dot * slope;
        size = std::fabs(norm.b * plain.dot_size * slope);
      }
      expect_close(got.dv[at], factor * (g - pull), tolerance, std::fabs(factor) * (std::fabs(g) + size));
    }
  }
}

constexpr Norm kNorms[] = {{0, 0, 2}, {1, 0, 2}, {0, 1, 1},     {0, 1, 1.5}, {0, 1, 2},  {0, 1, 3},      {0, 1, 3.7},
                           {1, 1, 2}, {0, 1, 5}, {.5, .5, 2.5}, {2, 0, 2},   {.5, 0, 2}, {.5, 1.3, 3.7}, {0, 2, 2}};
// Without connections; around a warp; around a block of 256; beyond 1024.
const std::vector<int> kShort{3, 5, 0, 1, 2, 31, 32, 33, 64, 0, 255, 257, 1100, 7, 1, 0};
const std::vector<int> kLong{600, 513, 1500, 1024, 0, 33};  // 512 connections a row and more take other kernels

template <class T>
class LayerNorm : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LayerNorm, Scalars);

TYPED_TEST(LayerNorm, IsThatOfTheFormulas) {
  std::mt19937 random(1);
  int turn = 0;
  for (const Norm& norm : kNorms) {
    for (const auto* lengths : {&kShort, &kLong}) {
      const Rows<TypeParam> rows(random, *lengths, 0);
      check(rows, norm, static_cast<Mode>(turn++ % 3));
    }
  }
  check(Rows<TypeParam>(random, {1, 2}, 0), {1, 1, 2}, Mode::kPerRow);
}

// Values so far apart that |v|^p leaves the range of the type, or is lost beside the largest.
TYPED_TEST(LayerNorm, HoldsForValuesOfAnySize) {
  std::mt19937 random(2);
  for (const Norm& norm : {Norm{0, 1, 2}, Norm{1, 1, 2}, Norm{0, 1, 5}}) {
    check(Rows<TypeParam>(random, {4, 2, 40, 300, 1}, 6), norm, Mode::kShared);
  }
}

// Which connections go is decided by |w|, so it must be the same number on every device.
TYPED_TEST(LayerNorm, HasTheWeightsOfTheCpuBitForBit) {
  using T = TypeParam;
  std::mt19937 random(3);
  for (const Norm& norm : {Norm{0, 0, 2}, Norm{1, 0, 2}, Norm{0, 1, 1}, Norm{0, 1, 2}, Norm{1, 1, 2}, Norm{.5, 1, 2}}) {
    for (const auto* lengths : {&kShort, &kLong}) {
      for (const Mode mode : {Mode::kNone, Mode::kShared, Mode::kPerRow}) {
        const Rows<T> rows(random, *lengths, 1);
        std::vector<T> w(rows.values.size()), expected(rows.values.size());
        auto on_cpu = rows.template layer<cpu::Layer<T>>(norm, mode);
        on_cpu.threads = cpu::threads_of(1);
        cpu::effective_weight(on_cpu, expected.data());
        ASSERT_EQ(effective_weight(rows.on_device(norm, mode), w.data(), nullptr), cudaSuccess);
        EXPECT_EQ(w, expected) << "a " << norm.a << ", b " << norm.b << ", p " << norm.p;
      }
    }
  }
}

TYPED_TEST(LayerNorm, AddsUpTheExcitabilitysGradient) {
  using T = TypeParam;
  std::mt19937 random(4);
  for (const i64 count : {0, 1, 31, 1000, 1024, 5000}) {
    std::vector<double> parts(count);
    long double sum = 0, size = 0;
    for (double& part : parts) {
      part = std::normal_distribution<double>()(random);
      sum += part;
      size += std::fabs(part);
    }
    const Guarded total(sizeof(T), 0);
    ASSERT_EQ(add_parts(parts.data(), count, total.as<T>(), nullptr), cudaSuccess);
    total.expect_whole();
    expect_close(*total.as<T>(), sum, sizeof(T) == 4 ? 1e-6 : 1e-14, size);
  }
}

// The effective weights where they are connected and zero elsewhere, with and without factors.
TYPED_TEST(LayerNorm, SpreadsTheWeightsOutDensely) {
  using T = TypeParam;
  std::mt19937 random(5);
  for (const cases::Shape& shape : {cases::Shape{40, 30, 0.3}, cases::Shape{700, 3, 0.5}, cases::Shape{3, 5, 0}}) {
    for (const bool scaled : {false, true}) {
      const cases::Pattern pattern = cases::pattern_of(random, shape);
      std::vector<T> values(pattern.nnz());
      for (T& value : values) value = static_cast<T>(std::normal_distribution<double>()(random));
      std::vector<Factor<T>> factors;
      for (i64 i = 0; i < shape.outputs; ++i) factors.push_back({static_cast<T>(i + 2), static_cast<T>(0.5)});
      Layer<T> layer{};
      layer.rows = shape.outputs;
      layer.connections = pattern.nnz();
      layer.view = {pattern.row_start.data(), pattern.column_index.data(), pattern.perm.data()};
      layer.values = values.data();
      std::vector<T> expected(shape.inputs * shape.outputs);
      for (i64 j = 0; j < shape.inputs; ++j) {
        for (i32 k = pattern.column_start[j]; k < pattern.column_start[j + 1]; ++k) {
          const i64 i = pattern.row_index[k];
          expected[i * shape.inputs + j] =
              values[k] * (scaled ? static_cast<T>(i + 2) : T{1}) * (scaled ? T(0.5) : T{1});
        }
      }
      const cases::Type own = sizeof(T) == 8 ? cases::Type::kFloat64 : cases::Type::kFloat32;
      for (const cases::Type type : {own, cases::Type::kBFloat16, cases::Type::kFloat16}) {
        if (sizeof(T) == 8 && type != own) continue;
        const Guarded dense(shape.inputs * shape.outputs * cases::size_of(type));
        ASSERT_EQ(dense_weight(layer, scaled ? factors.data() : nullptr, shape.inputs, type, dense.data(), nullptr),
                  cudaSuccess);
        dense.expect_whole();
        for (i64 at = 0; at < shape.inputs * shape.outputs; ++at) {
          const double got = cases::read(dense.data(), at, type);
          if (type == own) {
            ASSERT_EQ(got, expected[at]);
          } else {
            ASSERT_NEAR(got, expected[at], cases::rounding(type) * std::fabs(expected[at]) + 0x1p-25) << at;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace dendnorm::cuda
