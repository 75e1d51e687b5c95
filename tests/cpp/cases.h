// Layers to try kernels on, of every device, and what must come out: sums in long double over the connections, formed
// from the formulas and from nothing that the kernels use.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "core/layer.h"
#include "core/pattern.h"

namespace dendnorm::cases {

using i32 = std::int32_t;
using i64 = std::int64_t;

using dendnorm::Type;

// Bytes at a multiple of `alignment` plus `shift`, with a guard on either side that nobody may write, and under
// AddressSanitizer nobody may read.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes, std::size_t shift = 0, std::size_t alignment = 64)
      : bytes_(bytes), room_(kGuard + shift + bytes + kGuard + alignment, kMark) {
    auto at = reinterpret_cast<std::uintptr_t>(room_.data()) + kGuard;
    at = (at + alignment - 1) / alignment * alignment + shift;
    data_ = reinterpret_cast<std::byte*>(at);
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(room_.data(), data_ - room_.data());
    ASAN_POISON_MEMORY_REGION(data_ + bytes_, room_.data() + room_.size() - (data_ + bytes_));
#endif
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { open(); }

  std::byte* data() const { return data_; }
  template <class A>
  A* as() const {
    return reinterpret_cast<A*>(data_);
  }
  void expect_whole() const {
    open();
    const std::byte* end = data_ + bytes_;
    const auto mark = [](std::byte byte) { return byte == kMark; };
    EXPECT_TRUE(std::all_of(room_.data(), static_cast<const std::byte*>(data_), mark)) << "written before the start";
    EXPECT_TRUE(std::all_of(end, room_.data() + room_.size(), mark)) << "written past the end";
  }

 private:
  void open() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(room_.data(), room_.size());
#endif
  }

  static constexpr std::size_t kGuard = 256;
  static constexpr std::byte kMark{0x7f};
  std::size_t bytes_;
  std::vector<std::byte> room_;
  std::byte* data_;
};

// ---- 16-bit types, written from their definitions ----

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline double bfloat16_value(std::uint16_t bits) { return from_bits(std::uint32_t{bits} << 16); }

inline double float16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

inline double sixteen_bits_value(std::uint16_t bits, Type type) {
  return type == Type::kBFloat16 ? bfloat16_value(bits) : float16_value(bits);
}

inline double read(const void* data, i64 at, Type type) {
  switch (type) {
    case Type::kFloat32: return static_cast<const float*>(data)[at];
    case Type::kFloat64: return static_cast<const double*>(data)[at];
    default: return sixteen_bits_value(static_cast<const std::uint16_t*>(data)[at], type);
  }
}

// Draws a value of the type itself, so that the reference reads what the kernel reads.
inline void draw(std::mt19937& random, void* data, i64 at, Type type) {
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

inline i64 size_of(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

inline double rounding(Type type) {
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
        feature_major(feature_major),
        type(type),
        memory(static_cast<std::size_t>(extent * size_of(type)), shift) {}

  double operator()(i64 sample, i64 neuron) const {
    return read(memory.data(), feature_major ? neuron * stride + sample : sample * stride + neuron, type);
  }
  void fill(std::mt19937& random) {
    for (i64 k = 0; k < extent; ++k) draw(random, memory.data(), k, type);
  }
  // As a device's kernels take it.
  template <class Activations>
  Activations view() const {
    return {memory.data(), stride, feature_major, static_cast<decltype(Activations::type)>(type)};
  }

  i64 stride, extent;
  bool feature_major;
  Type type;
  Guarded memory;
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
inline Pattern pattern_of(std::mt19937& random, const Shape& shape) {
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

// Of the rows: 1, one factor, the product of two, or one that is taken apart into a row's own and one for all.
enum class Scale { kNone, kFirst, kBoth, kApart };

template <class T>
struct Case {
  Case(std::mt19937& random, const Shape& shape, i64 samples, Type type, bool feature_major, Scale scale)
      : shape(shape),
        samples(samples),
        scale(scale),
        pattern(pattern_of(random, shape)),
        values(pattern.nnz()),
        first(shape.outputs),
        second(shape.outputs),
        bias(shape.outputs),
        weights(shape.outputs),
        x(samples, shape.inputs, type, feature_major, gap(random), shift(random, type)),
        dy(samples, shape.outputs, type, feature_major, gap(random), shift(random, type)) {
    const Type scalar = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
    for (std::size_t k = 0; k < values.size(); ++k) draw(random, values.data(), static_cast<i64>(k), scalar);
    for (i64 i = 0; i < shape.outputs; ++i) {
      draw(random, first.data(), i, scalar);
      draw(random, second.data(), i, scalar);
      draw(random, bias.data(), i, scalar);
      draw(random, weights.data(), i, Type::kFloat64);
      if (scale == Scale::kApart) weights[i] = first[i];
    }
    x.fill(random);
    dy.fill(random);
  }

  // Whole cache lines half of the time, so that slabs used in place are among the cases.
  static i64 gap(std::mt19937& random) { return random() % 2 == 0 ? 0 : static_cast<i64>(random() % 5); }
  static std::size_t shift(std::mt19937& random, Type type) {
    return random() % 2 == 0 ? 0 : static_cast<std::size_t>(size_of(type) * static_cast<i64>(random() % 3));
  }

  // What row i is multiplied by.
  long double factor(i64 i) const {
    return (scale != Scale::kNone ? static_cast<long double>(first[i]) : 1) *
           (scale == Scale::kBoth ? static_cast<long double>(second[i]) : 1) *
           (scale == Scale::kApart ? static_cast<long double>(for_all) : 1);
  }
  template <class View>
  View rows() const {
    return {pattern.row_start.data(), pattern.column_index.data(), pattern.perm.data()};
  }
  template <class View>
  View columns() const {
    return {pattern.column_start.data(), pattern.row_index.data(), nullptr};
  }

  static constexpr T for_all = T(0.75);  // the part of the factors that all rows share

  Shape shape;
  i64 samples;
  Scale scale;
  Pattern pattern;
  std::vector<T> values, first, second, bias;
  std::vector<double> weights;  // of the rows, in the dots
  Matrix x, dy;
};

// y by sample, then by output.
template <class T>
void expect_output(const Case<T>& test, bool bias, const std::vector<double>& y) {
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
                  rounding(test.x.type) * (1e-3 + static_cast<double>(size)))
          << "sample " << b << ", output " << i;
    }
  }
}

// What is asked of the pass over the columns.
struct Wanted {
  bool dx, gradient, finish, dots, bias;
};

struct Gradients {
  std::vector<double> dx, gradient, dots, bias;
  bool operator==(const Gradients&) const = default;
};

template <class T>
void expect_gradients(const Case<T>& test, const Wanted& wanted, const Gradients& got) {
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
                  rounding(test.x.type) * (1e-3 + static_cast<double>(size)))
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
      dot += test.weights[i] * sum * test.values[k];
      dot_size += std::fabs(test.weights[i] * size * test.values[k]);
      const long double packed = test.scale == Scale::kApart ? static_cast<long double>(test.first[i]) : 1;
      const long double scale = wanted.finish ? test.factor(i) : packed;
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
}

// What a case runs through: every part of the pass over the columns wanted and not.
constexpr Wanted kWanted[] = {
    {true, true, true, false, true},  {true, true, false, true, true},    {true, false, false, false, false},
    {false, true, true, true, false}, {false, false, false, false, true}, {false, true, false, false, true},
};

}  // namespace dendnorm::cases
