// Every kernel set that this processor runs, against sums in long double over the connections.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/pattern.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "threads.h"

namespace dendnorm::cpu {
namespace {

using i32 = std::int32_t;
using i64 = std::int64_t;

struct Set {
  const char* name;
  const Kernels* kernels;
};

std::vector<Set> available() {
  std::vector<Set> sets{{"default", &kernels_generic()}};
#ifdef DENDNORM_X86
  if (chosen_capability() >= Capability::kAvx2) sets.push_back({"avx2", &kernels_avx2()});
  if (chosen_capability() >= Capability::kAvx512) sets.push_back({"avx512", &kernels_avx512()});
#endif
  return sets;
}

// ---- One interface for both scalar types ----

void run(const Kernels& set, const Forward<float>& f) { set.forward_f32(f); }
void run(const Kernels& set, const Forward<double>& f) { set.forward_f64(f); }
void run(const Kernels& set, const Columns<float>& c) { set.columns_f32(c); }
void run(const Kernels& set, const Columns<double>& c) { set.columns_f64(c); }
std::size_t workspace(const Kernels& set, const Forward<float>& f) { return set.forward_workspace_f32(f); }
std::size_t workspace(const Kernels& set, const Forward<double>& f) { return set.forward_workspace_f64(f); }
std::size_t workspace(const Kernels& set, const Columns<float>& c) { return set.columns_workspace_f32(c); }
std::size_t workspace(const Kernels& set, const Columns<double>& c) { return set.columns_workspace_f64(c); }

// Bytes at a multiple of 64 plus `shift`, with a guard on either side that nobody may write.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes, std::size_t shift = 0)
      : bytes_(bytes), room_(kGuard + shift + bytes + kGuard + 64, kMark) {
    auto at = reinterpret_cast<std::uintptr_t>(room_.data()) + kGuard;
    at = (at + 63) / 64 * 64 + shift;
    data_ = reinterpret_cast<std::byte*>(at);
  }
  std::byte* data() const { return data_; }
  template <class A>
  A* as() const {
    return reinterpret_cast<A*>(data_);
  }
  void expect_whole() const {
    const std::byte* end = data_ + bytes_;
    const auto mark = [](std::byte byte) { return byte == kMark; };
    EXPECT_TRUE(std::all_of(room_.data(), static_cast<const std::byte*>(data_), mark)) << "written before the start";
    EXPECT_TRUE(std::all_of(end, room_.data() + room_.size(), mark)) << "written past the end";
  }

 private:
  static constexpr std::size_t kGuard = 256;
  static constexpr std::byte kMark{0x7f};
  std::size_t bytes_;
  std::vector<std::byte> room_;
  std::byte* data_;
};

// ---- 16-bit types, written from their definitions ----

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

double bfloat16_value(std::uint16_t bits) { return from_bits(std::uint32_t{bits} << 16); }

double float16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

double sixteen_bits_value(std::uint16_t bits, Type type) {
  return type == Type::kBFloat16 ? bfloat16_value(bits) : float16_value(bits);
}

double read(const void* data, i64 at, Type type) {
  switch (type) {
    case Type::kFloat32: return static_cast<const float*>(data)[at];
    case Type::kFloat64: return static_cast<const double*>(data)[at];
    default: return sixteen_bits_value(static_cast<const std::uint16_t*>(data)[at], type);
  }
}

// Draws a value of the type itself, so that the reference reads what the kernel reads.
void draw(std::mt19937& random, void* data, i64 at, Type type) {
  const double value = std::normal_distribution<double>()(random);
  switch (type) {
    case Type::kFloat32: static_cast<float*>(data)[at] = static_cast<float>(value); return;
    case Type::kFloat64: static_cast<double*>(data)[at] = value; return;
    case Type::kBFloat16: {
      const float narrow = static_cast<float>(value);
      std::uint32_t bits;
      std::memcpy(&bits, &narrow, 4);
      static_cast<std::uint16_t*>(data)[at] = static_cast<std::uint16_t>(bits >> 16);
      return;
    }
    default: {  // a sign, an exponent from 2^-4 to 2^1 and any fraction
      const auto drawn = random();
      static_cast<std::uint16_t*>(data)[at] =
          static_cast<std::uint16_t>((drawn & 0x8000) | (11 + (drawn >> 16) % 6) << 10 | (drawn & 1023));
      return;
    }
  }
}

i64 size_of(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

double rounding(Type type) {
  switch (type) {
    case Type::kFloat32: return 1e-5;
    case Type::kFloat64: return 1e-13;
    case Type::kBFloat16: return 1.0 / 256;
    default: return 1.0 / 2048;
  }
}

// A matrix of activations with gaps between its rows.
struct Matrix {
  Matrix(i64 samples, i64 neurons, Type type, bool feature_major, i64 gap, std::size_t shift)
      : stride((feature_major ? samples : neurons) + gap),
        extent((feature_major ? neurons : samples) * stride),
        memory(static_cast<std::size_t>(extent * size_of(type)), shift),
        view{memory.data(), stride, feature_major, type} {}

  double operator()(i64 sample, i64 neuron) const {
    return read(memory.data(), view.feature_major ? neuron * stride + sample : sample * stride + neuron, view.type);
  }
  void fill(std::mt19937& random) {
    for (i64 k = 0; k < extent; ++k) draw(random, memory.data(), k, view.type);
  }

  i64 stride, extent;
  Guarded memory;
  Activations view;
};

// ---- A layer ----

struct Shape {
  i64 inputs, outputs;
  double density;
};

struct Pattern {
  std::vector<i32> row_start, column_index, perm;  // rows; perm leads to the values in column order
  std::vector<i32> column_start, row_index;
  i64 nnz() const { return static_cast<i64>(row_index.size()); }
};

// Every third column or so is empty and one row is full, whatever the density.
Pattern pattern_of(std::mt19937& random, const Shape& shape) {
  Pattern p;
  p.column_start.push_back(0);
  for (i64 j = 0; j < shape.inputs; ++j) {
    const bool empty = shape.density < 1 && random() % 3 == 0;
    for (i64 i = 0; i < shape.outputs; ++i) {
      const bool here = std::uniform_real_distribution<double>()(random) < shape.density && !empty;
      if (here || (i == 1 && shape.density > 0)) p.row_index.push_back(static_cast<i32>(i));
    }
    p.column_start.push_back(static_cast<i32>(p.row_index.size()));
  }
  p.row_start.resize(shape.outputs + 1);
  p.column_index.resize(p.row_index.size());
  p.perm.resize(p.row_index.size());
  transpose_pattern(p.column_start.data(), shape.inputs, p.row_index.data(), shape.outputs, p.row_start.data(),
                    p.column_index.data(), p.perm.data());
  return p;
}

enum class Scale { kNone, kFirst, kBoth };

template <class T>
struct Case {
  Case(std::mt19937& random, const Shape& shape, i64 samples, Type type, bool feature_major, Scale scale)
      : shape(shape),
        samples(samples),
        pattern(pattern_of(random, shape)),
        values(pattern.nnz()),
        first(shape.outputs),
        second(shape.outputs),
        bias(shape.outputs),
        x(samples, shape.inputs, type, feature_major, gap(random), shift(random, type)),
        dy(samples, shape.outputs, type, feature_major, gap(random), shift(random, type)) {
    const Type scalar = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
    for (std::size_t k = 0; k < values.size(); ++k) draw(random, values.data(), static_cast<i64>(k), scalar);
    for (i64 i = 0; i < shape.outputs; ++i) {
      draw(random, first.data(), i, scalar);
      draw(random, second.data(), i, scalar);
      draw(random, bias.data(), i, scalar);
    }
    x.fill(random);
    dy.fill(random);
    if (scale != Scale::kNone) factors.first = first.data();
    if (scale == Scale::kBoth) factors.second = second.data();
  }

  // Whole cache lines half of the time, so that slabs used in place are among the cases.
  static i64 gap(std::mt19937& random) { return random() % 2 == 0 ? 0 : static_cast<i64>(random() % 5); }
  static std::size_t shift(std::mt19937& random, Type type) {
    return random() % 2 == 0 ? 0 : static_cast<std::size_t>(size_of(type) * static_cast<i64>(random() % 3));
  }

  long double factor(i64 i) const {
    return (factors.first != nullptr ? static_cast<long double>(first[i]) : 1) *
           (factors.second != nullptr ? static_cast<long double>(second[i]) : 1);
  }
  View rows() const { return {pattern.row_start.data(), pattern.column_index.data(), pattern.perm.data()}; }
  View columns() const { return {pattern.column_start.data(), pattern.row_index.data(), nullptr}; }

  Shape shape;
  i64 samples;
  Pattern pattern;
  std::vector<T> values, first, second, bias;
  Matrix x, dy;
  Factors<T> factors;
};

template <class T>
std::vector<double> forward(const Kernels& set, const Case<T>& test, bool bias, int threads) {
  const Type type = test.x.view.type;
  Matrix y(test.samples, test.shape.outputs, type, test.x.view.feature_major, 3, 0);
  Forward<T> f{test.samples, test.shape.inputs,  test.shape.outputs, test.pattern.nnz(), test.x.view,
               y.view,       test.rows(),        test.values.data(), test.factors,       nullptr,
               nullptr,      threads_of(threads)};
  if (bias) f.bias = test.bias.data();
  const Guarded room(workspace(set, f));
  f.workspace = room.data();
  run(set, f);
  room.expect_whole();
  y.memory.expect_whole();
  std::vector<double> result;
  for (i64 b = 0; b < test.samples; ++b) {
    for (i64 i = 0; i < test.shape.outputs; ++i) result.push_back(y(b, i));
  }
  return result;
}

template <class T>
void check_forward(const Kernels& set, const Case<T>& test, bool bias) {
  const Type type = test.x.view.type;
  const std::vector<double> y = forward(set, test, bias, 1);
  for (i64 b = 0; b < test.samples; ++b) {
    for (i64 i = 0; i < test.shape.outputs; ++i) {
      long double sum = 0, size = 0;
      for (i32 k = test.pattern.row_start[i]; k < test.pattern.row_start[i + 1]; ++k) {
        const long double term = static_cast<long double>(test.values[test.pattern.perm[k]]) *
                                 test.x(b, test.pattern.column_index[k]) * test.factor(i);
        sum += term;
        size += std::fabs(term);
      }
      if (bias) {
        sum += test.bias[i];
        size += std::fabs(test.bias[i]);
      }
      ASSERT_NEAR(y[b * test.shape.outputs + i], static_cast<double>(sum),
                  rounding(type) * (1e-3 + static_cast<double>(size)))
          << "sample " << b << ", output " << i;
    }
  }
  for (const int threads : {2, 3, 7}) {
    ASSERT_EQ(forward(set, test, bias, threads), y) << threads << " threads";
  }
}

struct Wanted {
  bool dx, gradient, finish, dots, bias;
};

struct Gradients {
  std::vector<double> dx, gradient, dots, bias;
  bool operator==(const Gradients&) const = default;
};

template <class T>
Gradients columns(const Kernels& set, const Case<T>& test, const std::vector<double>& weights, const Wanted& wanted,
                  int threads) {
  const i64 inputs = test.shape.inputs, outputs = test.shape.outputs;
  const auto bytes = [](i64 count, std::size_t size) { return static_cast<std::size_t>(count) * size; };
  Matrix dx(test.samples, inputs, test.x.view.type, test.x.view.feature_major, 1, 0);
  const Guarded gradient(bytes(test.pattern.nnz(), sizeof(T))), dots(bytes(inputs, 8)), bias(bytes(outputs, sizeof(T)));
  Columns<T> c{};
  c.samples = test.samples;
  c.inputs = inputs;
  c.outputs = outputs;
  c.connections = test.pattern.nnz();
  c.dy = test.dy.view;
  if (wanted.gradient) c.x = test.x.view;
  if (wanted.dx) c.dx = dx.view;
  c.columns = test.columns();
  c.values = test.values.data();
  c.factors = test.factors;
  if (wanted.gradient) c.gradient = gradient.as<T>();
  c.finish = wanted.finish;
  if (wanted.dots) {
    c.dot_weights = weights.data();
    c.dots = dots.as<double>();
  }
  if (wanted.bias) c.bias_gradient = bias.as<T>();
  c.threads = threads_of(threads);
  const Guarded room(workspace(set, c));
  c.workspace = room.data();
  run(set, c);
  for (const Guarded* guarded : {&room, &gradient, &dots, &bias, static_cast<const Guarded*>(&dx.memory)}) {
    guarded->expect_whole();
  }
  Gradients result;
  for (i64 b = 0; b < test.samples && wanted.dx; ++b) {
    for (i64 j = 0; j < inputs; ++j) result.dx.push_back(dx(b, j));
  }
  if (wanted.gradient) result.gradient.assign(gradient.as<T>(), gradient.as<T>() + c.connections);
  if (wanted.dots) result.dots.assign(dots.as<double>(), dots.as<double>() + inputs);
  if (wanted.bias) result.bias.assign(bias.as<T>(), bias.as<T>() + outputs);
  return result;
}

template <class T>
void check_columns(const Kernels& set, const Case<T>& test, const Wanted& wanted) {
  std::mt19937 random(9);
  std::vector<double> weights(test.shape.outputs);
  for (double& weight : weights) weight = std::normal_distribution<double>()(random);
  const Gradients got = columns(set, test, weights, wanted, 1);
  const double exact = rounding(sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32);
  for (i64 j = 0; j < test.shape.inputs; ++j) {
    const i32 begin = test.pattern.column_start[j], end = test.pattern.column_start[j + 1];
    for (i64 b = 0; b < test.samples && wanted.dx; ++b) {
      long double sum = 0, size = 0;
      for (i32 k = begin; k < end; ++k) {
        const i32 i = test.pattern.row_index[k];
        const long double term = test.factor(i) * test.values[k] * test.dy(b, i);
        sum += term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(got.dx[b * test.shape.inputs + j], static_cast<double>(sum),
                  rounding(test.x.view.type) * (1e-3 + static_cast<double>(size)))
          << "dx, sample " << b << ", input " << j;
    }
    if (!wanted.gradient) continue;
    long double dot = 0, dot_size = 0;
    for (i32 k = begin; k < end; ++k) {
      const i32 i = test.pattern.row_index[k];
      long double sum = 0, size = 0;
      for (i64 b = 0; b < test.samples; ++b) {
        const long double term = static_cast<long double>(test.dy(b, i)) * test.x(b, j);
        sum += term;
        size += std::fabs(term);
      }
      dot += weights[i] * sum * test.values[k];
      dot_size += std::fabs(weights[i] * size * test.values[k]);
      const long double scale = wanted.finish ? test.factor(i) : 1;
      ASSERT_NEAR(got.gradient[k], static_cast<double>(scale * sum),
                  exact * static_cast<double>(1e-3 + std::fabs(scale) * size))
          << "gradient of connection " << k;
    }
    if (wanted.dots) {
      ASSERT_NEAR(got.dots[j], static_cast<double>(dot), exact * static_cast<double>(1e-3 + dot_size)) << "input " << j;
    }
  }
  for (i64 i = 0; i < test.shape.outputs && wanted.bias; ++i) {
    long double sum = 0, size = 0;
    for (i64 b = 0; b < test.samples; ++b) {
      sum += test.dy(b, i);
      size += std::fabs(test.dy(b, i));
    }
    ASSERT_NEAR(got.bias[i], static_cast<double>(sum), exact * static_cast<double>(1e-3 + size)) << "bias " << i;
  }
  for (const int threads : {2, 3, 7}) {
    ASSERT_TRUE(columns(set, test, weights, wanted, threads) == got) << threads << " threads";
  }
}

// ---- The cases ----

constexpr Wanted kWanted[] = {
    {true, true, true, false, true},  {true, true, false, true, true},    {true, false, false, false, false},
    {false, true, true, true, false}, {false, false, false, false, true}, {false, true, false, false, true},
};
constexpr i64 kSamples[] = {0, 1, 2, 3, 4, 5, 8, 10, 16, 17, 31, 32, 33, 40, 48, 63, 64, 65, 100, 128, 129};

class EverySet : public testing::TestWithParam<Set> {};

template <class T>
void check_all(const Kernels& set, const Shape& shape, i64 samples, Type type, bool feature_major, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << shape.inputs << " -> " << shape.outputs << " at " << shape.density << ", "
                                  << samples << " samples, type " << static_cast<int>(type)
                                  << (feature_major ? ", feature-major" : ", batch-major"));
  std::mt19937 random(seed);
  for (const Scale scale : {Scale::kNone, Scale::kFirst, Scale::kBoth}) {
    const Case<T> test(random, shape, samples, type, feature_major, scale);
    check_forward(set, test, scale != Scale::kFirst);
    check_columns(set, test, kWanted[random() % 2]);
    check_columns(set, test, kWanted[2 + random() % 4]);
  }
}

TEST_P(EverySet, AgreesWithPlainSums) {
  std::uint32_t seed = 0;
  for (const i64 samples : kSamples) {
    for (const bool feature_major : {false, true}) {
      const Shape shapes[] = {{37, 53, 0.3}, {50, 19, 1}, {70, 33, 0.05}};
      const Shape& shape = shapes[seed++ % 3];
      check_all<float>(*GetParam().kernels, shape, samples, Type::kFloat32, feature_major, seed);
      check_all<double>(*GetParam().kernels, shape, samples, Type::kFloat64, feature_major, seed);
    }
  }
}

TEST_P(EverySet, ReadsAndWritesSixteenBits) {
  std::uint32_t seed = 100;
  for (const i64 samples : {1, 2, 7, 10, 32, 65, 129}) {
    for (const bool feature_major : {false, true}) {
      for (const Type type : {Type::kBFloat16, Type::kFloat16}) {
        check_all<float>(*GetParam().kernels, {45, 39, 0.2}, samples, type, feature_major, ++seed);
      }
    }
  }
}

TEST_P(EverySet, TakesShapesAtTheEdge) {
  std::uint32_t seed = 200;
  for (const Shape& shape : {Shape{1, 2, 1}, Shape{1, 40, 0.5}, Shape{300, 2, 0.4}, Shape{2, 300, 0.4},
                             Shape{20, 30, 0}, Shape{16, 16, 1}, Shape{17, 15, 0.9}}) {
    for (const i64 samples : {1, 3, 33}) {
      check_all<float>(*GetParam().kernels, shape, samples, Type::kFloat32, seed % 2 == 0, seed);
      check_all<double>(*GetParam().kernels, shape, samples, Type::kFloat64, seed % 2 == 1, seed);
      ++seed;
    }
  }
}

// Enough work for every thread to get some, with rows of very different lengths.
TEST_P(EverySet, SplitsLargeLayersWithTheSameBits) {
  check_all<float>(*GetParam().kernels, {400, 300, 0.1}, 100, Type::kFloat32, false, 300);
  check_all<double>(*GetParam().kernels, {300, 400, 0.1}, 70, Type::kFloat64, true, 301);
}

// y = x where W is the identity: what comes in goes out, rounded to the nearest 16-bit value, ties to even.
TEST_P(EverySet, RoundsToTheNearest) {
  const i64 n = 64, samples = 40;
  std::vector<i32> start(n + 1), index(n), perm(n);
  for (i32 k = 0; k < n; ++k) start[k] = index[k] = perm[k] = k;
  start[n] = static_cast<i32>(n);
  for (const Type type : {Type::kBFloat16, Type::kFloat16}) {
    std::mt19937 random(5);
    std::vector<float> x(samples * n), ones(n, 1.F);
    for (float& value : x) {
      value = static_cast<float>(
          std::ldexp(std::uniform_real_distribution<double>(-2, 2)(random), static_cast<int>(random() % 40) - 26));
    }
    const float tie = type == Type::kBFloat16 ? 0x1p-8F : 0x1p-11F;
    const float special[] = {1 + tie, 1 + 3 * tie, -1 - tie, 0.F, 0x1p-24F, 0x1p-25F, 65504.F, INFINITY, -INFINITY};
    std::copy(std::begin(special), std::end(special), x.begin());
    for (const i64 count : {samples, i64{1}}) {
      Matrix y(count, n, type, false, 0, 0);
      Activations from{x.data(), n, false, Type::kFloat32};
      Forward<float> f{
          count,       n,  n,       n,       from,         y.view, {start.data(), index.data(), perm.data()},
          ones.data(), {}, nullptr, nullptr, threads_of(1)};
      const Guarded room(workspace(*GetParam().kernels, f));
      f.workspace = room.data();
      run(*GetParam().kernels, f);
      for (i64 at = 0; at < count * n; ++at) {
        if (std::isinf(x[at])) {
          EXPECT_EQ(y(at / n, at % n), x[at]);
          continue;
        }
        // The two neighbours of what was written may not be nearer.
        const auto bits = y.memory.as<std::uint16_t>()[at];
        const double error = std::fabs(sixteen_bits_value(bits, type) - x[at]);
        for (const int step : {-1, 1}) {
          const auto other = static_cast<std::uint16_t>(bits + step);
          const double distance = std::fabs(sixteen_bits_value(other, type) - x[at]);
          if (std::isnan(distance)) continue;
          EXPECT_LE(error, distance) << x[at];
          if (error == distance && bits % 0x8000 != 0) {
            EXPECT_EQ(bits & 1, 0) << "a tie goes to even: " << x[at];
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, EverySet, testing::ValuesIn(available()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Dispatch, ChoosesWhatItNames) {
  const Kernels& chosen = kernels();
  for (const Set& set : available()) {
    if (std::string(set.name) == capability()) {
      EXPECT_EQ(set.kernels, &chosen);
    }
  }
  EXPECT_EQ(available().back().name, std::string(capability()));
}

}  // namespace
}  // namespace dendnorm::cpu
