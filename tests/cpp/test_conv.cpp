// The convolution's kernels of every set that this processor runs, against sums in long double over the definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "cases.h"
#include "core/pattern.h"
#include "cpu/conv.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "threads.h"

namespace dendnorm::cpu {
namespace {

using cases::Guarded;
using cases::i32;
using cases::i64;
using cases::Type;

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets{&kernels_generic()};
#ifdef DENDNORM_X86
  if (chosen_capability() >= Capability::kAvx2) sets.push_back(&kernels_avx2());
  if (chosen_capability() >= Capability::kAvx512) sets.push_back(&kernels_avx512());
#elif defined(__aarch64__)
  sets.push_back(&kernels_neon());
#endif
  return sets;
}

// Memory that is given once, and may not be left.
struct Memory {
  std::deque<Guarded> taken;

  Room room() {
    return {[](void* context, std::size_t bytes) {
              return static_cast<Memory*>(context)->taken.emplace_back(bytes).data();
            },
            this};
  }
  void expect_whole() const {
    for (const Guarded& memory : taken) memory.expect_whole();
  }
};

enum class Order { kColumns, kChannels, kSamples, kApart };  // what is innermost; or a gap between all

// Images in guarded memory.
struct Pictures {
  Pictures(const ImageSizes& sizes, Type type, Order order)
      : sizes(sizes),
        images(strides(sizes, type, order)),
        count((sizes.samples - 1) * images.sample + (sizes.channels - 1) * images.channel +
              (sizes.height - 1) * images.row + (sizes.width - 1) * images.column + 1),
        memory(static_cast<std::size_t>(std::max<i64>(count, 0) * cases::size_of(type))) {
    images.data = memory.data();
  }

  static Images strides(const ImageSizes& s, Type type, Order order) {
    Images images;
    images.type = type;
    const i64 gap = order == Order::kApart ? 3 : 1;
    const auto set = [&](i64 Images::* first, i64 a, i64 Images::* second, i64 b, i64 Images::* third, i64 c,
                         i64 Images::* fourth) {
      images.*first = gap;
      images.*second = images.*first * a;
      images.*third = images.*second * b;
      images.*fourth = images.*third * c;
    };
    using I = Images;
    switch (order) {
      case Order::kChannels: set(&I::channel, s.channels, &I::column, s.width, &I::row, s.height, &I::sample); break;
      case Order::kSamples: set(&I::sample, s.samples, &I::column, s.width, &I::row, s.height, &I::channel); break;
      default: set(&I::column, s.width, &I::row, s.height, &I::channel, s.channels, &I::sample);
    }
    return images;
  }
  double operator()(i64 b, i64 c, i64 h, i64 w) const {
    const i64 at = b * images.sample + c * images.channel + h * images.row + w * images.column;
    return cases::read(memory.data(), at, images.type);
  }
  void fill(std::mt19937& random) const {
    for (i64 k = 0; k < count; ++k) cases::draw(random, memory.data(), k, images.type);
  }

  ImageSizes sizes;
  Images images;
  i64 count;
  Guarded memory;
};

struct Case {
  ConvShape shape;
  double density;
};

struct Pattern {
  std::vector<i32> column_start, row_index, row_start, column_index, perm;
};

Pattern pattern_of(std::mt19937& random, const Case& test) {
  const ConvShape& s = test.shape;
  const i64 taps = s.group_channels() * s.window.area();
  Pattern p;
  p.column_start.push_back(0);
  for (i64 tap = 0; tap < taps; ++tap) {
    for (i64 o = 0; o < s.filters; ++o) {
      const bool here = std::uniform_real_distribution<double>()(random) < test.density;
      if (here && o != 1) p.row_index.push_back(static_cast<i32>(o));
    }
    p.column_start.push_back(static_cast<i32>(p.row_index.size()));
  }
  p.row_start.resize(s.filters + 1);
  p.column_index.resize(p.row_index.size());
  p.perm.resize(p.row_index.size());
  transpose_pattern(p.column_start.data(), taps, p.row_index.data(), s.filters, p.row_start.data(),
                    p.column_index.data(), p.perm.data());
  return p;
}

// Sums and the sums of the sizes of their terms.
struct Sums {
  explicit Sums(i64 count) : value(count), size(count) {}
  void add(i64 at, long double term) {
    value[at] += term;
    size[at] += std::fabs(term);
  }
  std::vector<long double> value, size;
};

template <class T>
void check(const KernelsOf<T>& set, Case test, Type type, Order order, std::mt19937& random) {
  ConvShape& s = test.shape;
  const Pattern pattern = pattern_of(random, test);
  s.connections = static_cast<i64>(pattern.row_index.size());
  const i64 nnz = s.connections;
  const ImageSizes in{s.samples, s.channels, s.height, s.width};
  const ImageSizes out{s.samples, s.filters, s.out_height(), s.out_width()};
  const Pictures x(in, type, order), dy(out, type, order);
  x.fill(random);
  dy.fill(random);
  std::vector<T> weights(nnz), bias(s.filters);
  const Type scalar = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
  for (i64 k = 0; k < nnz; ++k) cases::draw(random, weights.data(), k, scalar);
  for (i64 o = 0; o < s.filters; ++o) cases::draw(random, bias.data(), o, scalar);

  const auto in_at = [&](i64 b, i64 c, i64 h, i64 w) { return ((b * in.channels + c) * in.height + h) * in.width + w; };
  const auto out_at = [&](i64 b, i64 o, i64 i, i64 j) {
    return ((b * out.channels + o) * out.height + i) * out.width + j;
  };
  Sums y(s.samples * s.filters * out.height * out.width), dx(s.samples * s.channels * s.height * s.width), g(nnz),
      db(s.filters);
  const Window& w = s.window;
  for (i64 b = 0; b < s.samples; ++b) {
    for (i64 o = 0; o < s.filters; ++o) {
      for (i64 i = 0; i < out.height; ++i) {
        for (i64 j = 0; j < out.width; ++j) {
          y.add(out_at(b, o, i, j), bias[o]);
          db.add(o, dy(b, o, i, j));
          for (i32 k = pattern.row_start[o]; k < pattern.row_start[o + 1]; ++k) {
            const i64 tap = pattern.column_index[k], at = pattern.perm[k];
            const i64 c = o / s.group_filters() * s.group_channels() + tap / w.area();
            const i64 h = i * w.stride[0] + tap % w.area() / w.kernel[1] * w.dilation[0] - w.padding[0];
            const i64 v = j * w.stride[1] + tap % w.kernel[1] * w.dilation[1] - w.padding[2];
            if (h < 0 || h >= s.height || v < 0 || v >= s.width) continue;
            const long double weight = weights[at], image = x(b, c, h, v), grad = dy(b, o, i, j);
            y.add(out_at(b, o, i, j), weight * image);
            dx.add(in_at(b, c, h, v), weight * grad);
            g.add(at, image * grad);
          }
        }
      }
    }
  }
  const auto expect_images = [&](const char* name, const Pictures& got, const Sums& want) {
    i64 at = 0;
    for (i64 b = 0; b < got.sizes.samples; ++b) {
      for (i64 c = 0; c < got.sizes.channels; ++c) {
        for (i64 h = 0; h < got.sizes.height; ++h) {
          for (i64 v = 0; v < got.sizes.width; ++v, ++at) {
            ASSERT_NEAR(got(b, c, h, v), static_cast<double>(want.value[at]),
                        cases::rounding(type) * static_cast<double>(1e-3 + want.size[at]))
                << name << " at " << b << ", " << c << ", " << h << ", " << v;
          }
        }
      }
    }
    got.memory.expect_whole();
  };
  const View rows{pattern.row_start.data(), pattern.column_index.data(), pattern.perm.data()};
  const View columns{pattern.column_start.data(), pattern.row_index.data(), nullptr};
  std::vector<T> first;
  for (const int threads : {1, 3}) {
    Memory memory;
    const Pictures result(out, type, order);
    ConvForward<T> f{};
    f.shape = s;
    f.x = x.images;
    f.y = result.images;
    f.rows = rows;
    f.columns = columns;
    f.weights = weights.data();
    f.bias = bias.data();
    f.threads = threads_of(threads);
    f.room = memory.room();
    conv_forward(f, set);
    memory.expect_whole();
    expect_images("y", result, y);
    for (const bool wants_dx : {true, false}) {
      for (const bool wants_gradient : {true, false}) {
        Memory room;
        const Pictures gradient(in, type, order);
        const Guarded values(nnz * sizeof(T)), sums(s.filters * sizeof(T));
        ConvBackward<T> c{};
        c.shape = s;
        c.dy = dy.images;
        c.x = x.images;
        if (wants_dx) c.dx = gradient.images;
        c.rows = rows;
        c.columns = columns;
        c.weights = weights.data();
        if (wants_gradient) c.gradient = values.as<T>();
        c.bias_gradient = sums.as<T>();
        c.threads = threads_of(threads);
        c.room = room.room();
        conv_backward(c, set);
        room.expect_whole();
        values.expect_whole();
        sums.expect_whole();
        if (wants_dx) expect_images("dx", gradient, dx);
        const double exact = cases::rounding(scalar);
        for (i64 k = 0; k < nnz && wants_gradient; ++k) {
          ASSERT_NEAR(values.as<T>()[k], static_cast<double>(g.value[k]), exact * static_cast<double>(1e-3 + g.size[k]))
              << "gradient of connection " << k;
        }
        for (i64 o = 0; o < s.filters; ++o) {
          ASSERT_NEAR(sums.as<T>()[o], static_cast<double>(db.value[o]),
                      exact * static_cast<double>(1e-3 + db.size[o]));
        }
        if (!wants_dx && wants_gradient) {
          const std::vector<T> got(values.as<T>(), values.as<T>() + nnz);
          if (first.empty()) first = got;
          EXPECT_EQ(got, first) << "bits depend on the threads";
        }
      }
    }
  }
}

Window window(std::array<i64, 2> kernel, std::array<i64, 2> stride = {1, 1}, std::array<i64, 4> padding = {},
              std::array<i64, 2> dilation = {1, 1}, i64 groups = 1) {
  return {kernel, stride, padding, dilation, groups};
}

// Samples, channels, height, width, filters.
Case make(const Window& w, i64 samples, i64 channels, i64 height, i64 width, i64 filters, double density) {
  return {{w, samples, channels, height, width, filters, 0}, density};
}

std::vector<Case> all_cases() {
  return {
      make(window({3, 3}, {1, 1}, {1, 1, 1, 1}), 19, 5, 7, 7, 6, 0.4),
      make(window({3, 3}, {2, 2}, {1, 1, 1, 1}), 16, 4, 9, 15, 5, 0.5),
      make(window({3, 3}, {1, 1}, {1, 1, 1, 1}), 32, 3, 8, 29, 4, 0.3),
      make(window({2, 4}, {1, 3}, {0, 1, 2, 1}, {2, 1}, 2), 5, 4, 10, 17, 4, 0.6),
      make(window({1, 1}, {2, 2}), 17, 6, 8, 9, 5, 0.5),
      make(window({1, 1}), 33, 6, 3, 4, 5, 0.5),
      make(window({3, 2}, {3, 4}, {2, 0, 1, 3}, {1, 2}, 3), 3, 6, 11, 13, 6, 0.7),
      make(window({3, 3}, {1, 1}, {2, 2, 2, 2}, {2, 2}), 16, 4, 4, 16, 5, 0.0),
      make(window({5, 5}, {1, 1}, {2, 2, 2, 2}), 2, 2, 3, 2, 3, 1.0),
  };
}

TEST(Conv, EqualsTheDefinition) {
  std::mt19937 random(1);
  for (const Kernels* set : available()) {
    int number = 0;
    for (const Case& test : all_cases()) {
      SCOPED_TRACE(number++);
      for (const Order order : {Order::kColumns, Order::kChannels, Order::kSamples, Order::kApart}) {
        SCOPED_TRACE(static_cast<int>(order));
        check<double>(set->of<double>(), test, Type::kFloat64, order, random);
        for (const Type type : {Type::kFloat32, Type::kBFloat16, Type::kFloat16}) {
          check<float>(set->of<float>(), test, type, order, random);
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace dendnorm::cpu
