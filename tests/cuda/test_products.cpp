// The products of a layer on the device, run here: against sums in long double over the connections (cases.h).
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

#include "../cpp/cases.h"
#include "cuda/kernels.h"
#include "cuda/product.h"
#include "cuda_on_host.h"

namespace dendnorm::cuda {
namespace {

using cases::Case;
using cases::Gradients;
using cases::Guarded;
using cases::i64;
using cases::kWanted;
using cases::Matrix;
using cases::rounding;
using cases::Scale;
using cases::Shape;
using cases::Wanted;

// Devices that make other choices: much and little shared memory, many and few processors.
constexpr Device kDevices[] = {{132, 227 * 1024}, {132, 20 * 1024}, {1, 227 * 1024}, {2, 48 * 1024}};

// ThreadSanitizer makes everything ten times slower; a few cases of every kernel are enough for it.
#if defined(__SANITIZE_THREAD__)
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif
template <class X>
std::vector<X> some(std::vector<X> few, std::initializer_list<X> more) {
  if (!kFew) few.insert(few.end(), more);
  return few;
}

template <class T>
std::vector<Factor<T>> factors_of(const Case<T>& test) {
  std::vector<Factor<T>> factors;
  for (i64 i = 0; i < test.shape.outputs && test.scale != Scale::kNone; ++i) {
    factors.push_back({test.first[i], test.scale == Scale::kBoth ? test.second[i] : T{1}});
  }
  return factors;
}

// Nothing at all where a layer has no factors; data() of an empty vector may be anything.
template <class T>
const Factor<T>* pointer_of(const std::vector<Factor<T>>& factors, Scale scale) {
  return scale == Scale::kNone ? nullptr : factors.data();
}

std::vector<double> values_of(const Matrix& matrix, i64 samples, i64 neurons) {
  std::vector<double> values;
  for (i64 b = 0; b < samples; ++b) {
    for (i64 j = 0; j < neurons; ++j) values.push_back(matrix(b, j));
  }
  return values;
}

template <class T>
std::vector<double> forward_of(const Device& device, const Case<T>& test, bool bias) {
  const std::vector<Factor<T>> factors = factors_of(test);
  const Matrix y(test.samples, test.shape.outputs, test.x.type, test.x.feature_major, 3, 0);
  Forward<T> f{};
  f.samples = test.samples;
  f.inputs = test.shape.inputs;
  f.outputs = test.shape.outputs;
  f.connections = test.pattern.nnz();
  f.x = test.x.template view<Activations>();
  f.y = y.view<Activations>();
  f.rows = test.template rows<View>();
  f.values = test.values.data();
  f.factors = pointer_of(factors, test.scale);
  if (bias) f.bias = test.bias.data();
  const Guarded workspace(forward_workspace(f, device), 0, 256);
  f.workspace = workspace.data();
  EXPECT_EQ(forward(f, device, nullptr), cudaSuccess);
  workspace.expect_whole();
  y.memory.expect_whole();
  return values_of(y, test.samples, test.shape.outputs);
}

// X^T dY: G of every position.
template <class T>
std::vector<T> dense_gradient_of(const Case<T>& test) {
  std::vector<T> dense;
  for (i64 j = 0; j < test.shape.inputs; ++j) {
    for (i64 i = 0; i < test.shape.outputs; ++i) {
      double sum = 0;
      for (i64 b = 0; b < test.samples; ++b) sum += test.dy(b, i) * test.x(b, j);
      dense.push_back(static_cast<T>(sum));
    }
  }
  return dense;
}

template <class T>
Gradients columns_of(const Device& device, const Case<T>& test, const Wanted& wanted, bool dense = false) {
  const auto bytes = [](i64 count, std::size_t size) { return static_cast<std::size_t>(count) * size; };
  const i64 inputs = test.shape.inputs, outputs = test.shape.outputs, nnz = test.pattern.nnz();
  const std::vector<Factor<T>> factors = factors_of(test);
  const Matrix dx(test.samples, inputs, test.x.type, test.x.feature_major, 1, 0);
  const Guarded gradient(bytes(nnz, sizeof(T))), bias(bytes(outputs, sizeof(T)));
  const Guarded dots(bytes(wanted.dots ? dot_parts(nnz) : 0, 8));
  Columns<T> c{};
  c.samples = test.samples;
  c.inputs = inputs;
  c.outputs = outputs;
  c.connections = nnz;
  c.dy = test.dy.template view<Activations>();
  if (wanted.gradient && !dense) c.x = test.x.template view<Activations>();
  if (wanted.dx) c.dx = dx.view<Activations>();
  c.columns = test.template columns<View>();
  c.values = test.values.data();
  c.factors = pointer_of(factors, test.scale);
  if (wanted.gradient) c.gradient = gradient.as<T>();
  std::vector<T> dense_gradient;
  if (wanted.gradient && dense) {
    dense_gradient = dense_gradient_of(test);
    c.dense_gradient = dense_gradient.data();
  }
  c.finish = wanted.finish;
  if (wanted.dots) {
    c.dot_weights = test.weights.data();
    c.dots = dots.as<double>();
  }
  if (wanted.bias) c.bias_gradient = bias.as<T>();
  const Guarded workspace(columns_workspace(c, device), 0, 256);
  c.workspace = workspace.data();
  EXPECT_EQ(columns(c, device, nullptr), cudaSuccess);
  for (const Guarded* guarded : {&workspace, &gradient, &dots, &bias, &dx.memory}) guarded->expect_whole();
  Gradients result;
  if (wanted.dx) result.dx = values_of(dx, test.samples, inputs);
  if (wanted.gradient) result.gradient.assign(gradient.as<T>(), gradient.as<T>() + nnz);
  if (wanted.dots) result.dots.assign(dots.as<double>(), dots.as<double>() + dot_parts(nnz));
  if (wanted.bias) result.bias.assign(bias.as<T>(), bias.as<T>() + outputs);
  return result;
}

// What the parts of the dots add up to, over all columns.
template <class T>
void expect_dots(const Case<T>& test, const std::vector<double>& parts) {
  long double sum = 0, size = 0, got = 0;
  for (i64 j = 0; j < test.shape.inputs; ++j) {
    for (cases::i32 k = test.pattern.column_start[j]; k < test.pattern.column_start[j + 1]; ++k) {
      const i64 i = test.pattern.row_index[k];
      for (i64 b = 0; b < test.samples; ++b) {
        const long double term =
            static_cast<long double>(test.dy(b, i)) * test.x(b, j) * test.values[k] * test.weights[i];
        sum += term;
        size += std::fabs(term);
      }
    }
  }
  for (const double part : parts) got += part;
  const double exact = rounding(sizeof(T) == 8 ? cases::Type::kFloat64 : cases::Type::kFloat32);
  ASSERT_NEAR(static_cast<double>(got), static_cast<double>(sum), exact * static_cast<double>(1e-3 + size));
}

template <class T>
void check(const Device& device, const Case<T>& test, bool bias, const Wanted& wanted) {
  cuda_on_host::set_order(1);
  const std::vector<double> y = forward_of(device, test, bias);
  expect_output(test, bias, y);
  Gradients got = columns_of(device, test, wanted);
  cuda_on_host::set_order(2);
  ASSERT_EQ(forward_of(device, test, bias), y) << "blocks and threads in another order";
  ASSERT_TRUE(columns_of(device, test, wanted) == got) << "blocks and threads in another order";
  if (wanted.dots) expect_dots(test, got.dots);
  Wanted rest = wanted;
  rest.dots = false;
  expect_gradients(test, rest, got);
}

template <class T>
void check_all(const Device& device, const Shape& shape, i64 samples, cases::Type type, bool feature_major,
               std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << shape.inputs << " -> " << shape.outputs << " at " << shape.density << ", "
                                  << samples << " samples, type " << static_cast<int>(type)
                                  << (feature_major ? ", feature-major" : ", batch-major") << ", device of "
                                  << device.processors << " processors, " << device.shared_bytes << " bytes");
  std::mt19937 random(seed);
  const Scale scale = static_cast<Scale>(seed % 3);
  const Case<T> test(random, shape, samples, type, feature_major, scale);
  check(device, test, seed % 2 == 0, kWanted[seed % std::size(kWanted)]);
}

// A case for every number and layout; shapes, types, factors and devices take turns.
TEST(Products, AgreeWithPlainSums) {
  std::uint32_t seed = 0;
  for (const i64 samples : some<i64>({1, 7, 33, 65}, {0, 2, 5, 8, 10, 16, 17, 31, 32, 48, 64, 128, 129})) {
    for (const bool feature_major : {false, true}) {
      const Shape shapes[] = {{37, 53, 0.3}, {50, 19, 1}, {70, 33, 0.05}};
      const Shape& shape = shapes[seed % 3];
      for (const Device& device : kDevices) {
        check_all<float>(device, shape, samples, cases::Type::kFloat32, feature_major, seed);
        ++seed;
      }
      check_all<double>(kDevices[seed % 4], shape, samples, cases::Type::kFloat64, feature_major, seed);
    }
  }
}

TEST(Products, ReadAndWriteSixteenBits) {
  std::uint32_t seed = 100;
  for (const i64 samples : some<i64>({10, 65}, {1, 2, 7, 8, 16, 32, 129, 257})) {
    for (const bool feature_major : {false, true}) {
      for (const cases::Type type : {cases::Type::kBFloat16, cases::Type::kFloat16}) {
        check_all<float>(kDevices[seed % 4], {45, 39, 0.2}, samples, type, feature_major, seed);
        ++seed;
      }
    }
  }
}

TEST(Products, TakeShapesAtTheEdge) {
  std::uint32_t seed = 200;
  for (const Shape& shape : {Shape{1, 2, 1}, Shape{1, 40, 0.5}, Shape{300, 2, 0.4}, Shape{2, 300, 0.4},
                             Shape{20, 30, 0}, Shape{16, 16, 1}, Shape{31, 33, 0.9}, Shape{33, 31, 0.5}}) {
    for (const i64 samples : some<i64>({10}, {1, 33})) {
      for (const Device& device : {kDevices[seed % 2], kDevices[2 + seed / 2 % 2]}) {
        check_all<float>(device, shape, samples, cases::Type::kFloat32, seed % 2 == 0, seed);
        check_all<double>(device, shape, samples, cases::Type::kFloat64, seed % 2 == 1, seed);
        ++seed;
      }
    }
  }
}

// The gradient of the values out of a dense product, whatever the density.
template <class T>
void check_gathered(cases::Type type, std::uint32_t seed) {
  for (const Shape& shape : {Shape{1, 2, 1}, Shape{20, 30, 0}, Shape{16, 16, 1}, Shape{37, 53, 0.3}}) {
    for (const Wanted& wanted : kWanted) {
      std::mt19937 random(++seed);
      const Case<T> test(random, shape, 9, type, seed % 2 == 0, static_cast<Scale>(seed % 3));
      cuda_on_host::set_order(seed);
      const Gradients got = columns_of(kDevices[seed % 4], test, wanted, true);
      if (wanted.dots) expect_dots(test, got.dots);
      Wanted rest = wanted;
      rest.dots = false;
      expect_gradients(test, rest, got);
    }
  }
}

TEST(Products, TakeGradientsOutOfADenseProduct) {
  check_gathered<float>(cases::Type::kFloat32, 800);
  check_gathered<float>(cases::Type::kBFloat16, 830);
  check_gathered<double>(cases::Type::kFloat64, 860);
}

// Rows, and columns, of more connections than one warp takes.
TEST(Products, CutLongSegments) {
  std::uint32_t seed = 300;
  for (const Shape& shape : some<Shape>({{1500, 7, 0.1}}, {{7, 1500, 0.9}, {2500, 3, 0.95}})) {
    for (const i64 samples : some<i64>({20}, {1, 130})) {
      for (const Device& device : {kDevices[0], kDevices[1]}) {
        check_all<float>(device, shape, samples, cases::Type::kFloat32, seed % 2 == 0, seed);
        ++seed;
      }
      check_all<double>(kDevices[seed % 4], shape, samples, cases::Type::kFloat64, seed % 2 == 0, seed);
    }
  }
}

// Every kernel with every number of lanes, whatever the choice would be; `split` warps to a row, and a row, the full
// one, that is long among short ones.
template <class T>
void check_each(cases::Type type, std::uint32_t seed) {
  for (const bool slab : {false, true}) {
    for (int lanes = slab ? kMaxSlabLanes : kMaxGatherLanes; lanes >= 1; lanes /= 2) {
      for (const int split : {1, 4}) {
        if (slab && split > 1) continue;
        SCOPED_TRACE(testing::Message() << (slab ? "slab" : "gather") << ", " << lanes << " lanes, split " << split);
        std::mt19937 random(++seed);
        const i64 samples = 16;  // whole pieces, so that what is gathered lies packed
        const Case<T> test(random, {90, 37, 0.2}, samples, type, false, Scale::kFirst);
        const std::vector<Factor<T>> factors = factors_of(test);
        const i64 element = cases::size_of(type);
        Matrix packed(samples, 90, type, true, 0, 0), y(samples, 37, type, false, 0, 0);
        for (i64 j = 0; j < 90; ++j) {
          for (i64 b = 0; b < samples; ++b) {
            std::memcpy(packed.memory.data() + (j * samples + b) * element,
                        test.x.memory.data() + (b * test.x.stride + j) * element, static_cast<std::size_t>(element));
          }
        }
        Product<T> p{};
        p.samples = static_cast<std::uint32_t>(samples);
        p.segments = 37;
        p.neurons = 90;
        p.x = packed.memory.data();
        p.x_neuron = samples * element;
        p.x_sample = element;
        p.packed = true;
        p.view = test.template rows<View>();
        p.values = test.values.data();
        p.row_factors = factors.data();
        p.y = y.memory.data();
        p.y_neuron = element;
        p.y_sample = 37 * element;
        ProductChoice choice{slab, lanes, split, slab ? kSlabWarps : kWarps / split, 60, {}};
        ASSERT_EQ(launch_product(p, choice, type, nullptr), cudaSuccess);
        const std::vector<double> cut = values_of(y, samples, 37);
        expect_output(test, false, cut);
        // Cutting the long row leaves the bits of all others alone.
        choice.long_row = 1 << 30;
        ASSERT_EQ(launch_product(p, choice, type, nullptr), cudaSuccess);
        const std::vector<double> whole = values_of(y, samples, 37);
        expect_output(test, false, whole);
        for (i64 b = 0; b < samples; ++b) {
          for (i64 i = 0; i < 37; ++i) ASSERT_TRUE(i == 1 || cut[b * 37 + i] == whole[b * 37 + i]) << i;
        }
        if (!slab) continue;
        // However the slab is filled: in whole pieces until now, or one by one from any strides.
        p.packed = false;
        ASSERT_EQ(launch_product(p, choice, type, nullptr), cudaSuccess);
        ASSERT_TRUE(values_of(y, samples, 37) == whole) << "filled one by one";
        p.x = test.x.memory.data();
        p.x_neuron = element;
        p.x_sample = test.x.stride * element;
        ASSERT_EQ(launch_product(p, choice, type, nullptr), cudaSuccess);
        ASSERT_TRUE(values_of(y, samples, 37) == whole) << "filled from batch-major activations";
      }
    }
  }
}

TEST(Products, AgreeInEveryKernelWithEveryNumberOfLanes) {
  check_each<float>(cases::Type::kFloat32, 400);
  check_each<double>(cases::Type::kFloat64, 500);
  if (!kFew) {
    check_each<float>(cases::Type::kBFloat16, 600);
    check_each<float>(cases::Type::kFloat16, 700);
  }
}

// An absent connection is not a product with zero: what is infinite stays where it is connected.
TEST(Products, KeepInfinitiesWhereTheyAre) {
  for (const Device& device : kDevices) {
    for (const i64 samples : {1, 9, 40}) {
      std::mt19937 random(samples);
      const Case<float> test(random, {40, 30, 0.2}, samples, cases::Type::kFloat32, false, Scale::kNone);
      const i64 column = 5;
      for (i64 b = 0; b < samples; ++b) test.x.memory.as<float>()[b * test.x.stride + column] = INFINITY;
      std::vector<bool> connected(30);
      for (cases::i32 k = test.pattern.column_start[column]; k < test.pattern.column_start[column + 1]; ++k) {
        connected[test.pattern.row_index[k]] = true;
      }
      const std::vector<double> y = forward_of(device, test, false);
      for (i64 at = 0; at < samples * 30; ++at) EXPECT_EQ(std::isinf(y[at]), connected[at % 30]) << at;
    }
  }
}

}  // namespace
}  // namespace dendnorm::cuda
