// dX and the gradient of the values in one pass: every kernel, whatever the choice would be, against sums in long
// double.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../cpp/cases.h"
#include "cuda/choose.h"
#include "cuda/product.h"
#include "cuda_on_host.h"

namespace dendnorm::cuda {
namespace {

using cases::Case;
using cases::Gradients;
using cases::Guarded;
using cases::i64;
using cases::Matrix;
using cases::Scale;
using cases::Shape;

// Feature-major, in whole 16-byte pieces with zeros after the last sample.
struct PackedCopy {
  i64 pitch;
  Guarded memory;

  PackedCopy(const Matrix& from, i64 samples, i64 neurons)
      : pitch((samples * cases::size_of(from.type) + 15) / 16 * 16),
        memory(static_cast<std::size_t>(neurons * pitch), 0, 16) {
    const i64 size = cases::size_of(from.type);
    std::memset(memory.data(), 0, static_cast<std::size_t>(neurons * pitch));
    for (i64 n = 0; n < neurons; ++n) {
      for (i64 b = 0; b < samples; ++b) {
        const i64 at = from.feature_major ? n * from.stride + b : b * from.stride + n;
        std::memcpy(memory.data() + n * pitch + b * size, from.memory.data() + at * size,
                    static_cast<std::size_t>(size));
      }
    }
  }
};

template <class T>
struct Fused {
  const Case<T>& test;
  i64 inputs = test.shape.inputs, outputs = test.shape.outputs, nnz = test.pattern.nnz();
  std::vector<Factor<T>> factors = std::vector<Factor<T>>(static_cast<std::size_t>(outputs), Factor<T>{1, 1});
  PackedCopy dy{test.dy, test.samples, outputs}, x{test.x, test.samples, inputs};

  explicit Fused(const Case<T>& test) : test(test) {
    for (i64 i = 0; i < outputs; ++i) factors[i].first = test.first[i];
  }

  Gradients run(const ProductChoice& choice, bool dots) {
    const i64 element = cases::size_of(test.x.type);
    const Matrix dx(test.samples, inputs, test.x.type, test.x.feature_major, 1, 0);
    Product<T> p{};
    p.samples = static_cast<std::uint32_t>(test.samples);
    p.segments = static_cast<std::uint32_t>(inputs);
    p.neurons = static_cast<std::uint32_t>(outputs);
    p.x = dy.memory.data();
    p.x_neuron = dy.pitch;
    p.x_sample = element;
    p.packed = true;
    p.view = test.template columns<View>();
    p.values = test.values.data();
    p.entry_factors = factors.data();
    p.y = dx.memory.data();
    p.y_neuron = (dx.feature_major ? dx.stride : 1) * element;
    p.y_sample = (dx.feature_major ? 1 : dx.stride) * element;

    const ProductShape shape{test.samples, inputs, outputs, nnz, static_cast<int>(element), sizeof(T), true};
    const i64 parts = gradient_parts(shape, choice);
    const Guarded part(static_cast<std::size_t>(parts * nnz) * sizeof(T)), gradient(nnz * sizeof(T)),
        sums(static_cast<std::size_t>(dot_part_count(nnz)) * 8);
    const SharedLoads<T> loads{x.memory.data(), x.pitch, static_cast<std::uint32_t>(nnz), part.as<T>()};
    const auto type = static_cast<Type>(test.x.type);
    EXPECT_EQ(launch_fused(p, loads, choice, type, nullptr), cudaSuccess);

    Sampled<T> s{};
    s.samples = p.samples;
    s.segments = p.segments;
    s.connections = loads.connections;
    s.view = p.view;
    s.values = p.values;
    s.finish = dots ? nullptr : factors.data();
    s.dot_weights = dots ? test.weights.data() : nullptr;
    s.dots = sums.as<double>();
    s.gradient = gradient.as<T>();
    EXPECT_EQ(launch_added(s, part.as<T>(), static_cast<std::uint32_t>(parts), nullptr), cudaSuccess);
    for (const Guarded* guarded : {&dx.memory, &part, &gradient, &sums}) guarded->expect_whole();

    Gradients result;
    for (i64 b = 0; b < test.samples; ++b) {
      for (i64 j = 0; j < inputs; ++j) result.dx.push_back(dx(b, j));
    }
    result.gradient.assign(gradient.as<T>(), gradient.as<T>() + nnz);
    if (dots) result.dots.assign(sums.as<double>(), sums.as<double>() + dot_part_count(nnz));
    return result;
  }
};

template <class T>
void check(cases::Type type, bool slab, int lanes, int split, i64 samples, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << (slab ? "slab, " : "gather, ") << lanes << " lanes, split " << split << ", "
                                  << samples << " samples, type " << static_cast<int>(type));
  std::mt19937 random(seed);
  const Case<T> test(random, {20, 60, 0.3}, samples, type, seed % 2 == 0, Scale::kFirst);
  Fused<T> fused(test);
  ProductChoice choice{slab, lanes, split, slab ? kSlabWarps : kWarps / split, 24, {}};
  cuda_on_host::set_order(seed);
  const Gradients cut = fused.run(choice, false);
  cases::expect_gradients(test, {true, true, true, false, false}, cut);
  cuda_on_host::set_order(seed + 1);
  ASSERT_TRUE(fused.run(choice, false) == cut) << "blocks and threads in another order";
  // How a column is cut between warps is nothing to the connections; nor is what else is made of them.
  choice.long_row = 1 << 30;
  const Gradients whole = fused.run(choice, true);
  cases::expect_gradients(test, {true, true, false, false, false}, whole);
  long double sum = 0, wanted = 0, size = 0;
  for (const double part : whole.dots) sum += part;
  for (i64 k = 0; k < test.pattern.nnz(); ++k) {
    const long double term = test.weights[test.pattern.row_index[k]] * whole.gradient[k] * test.values[k];
    wanted += term;
    size += std::fabs(term);
    const Factor<T> factor = fused.factors[test.pattern.row_index[k]];
    ASSERT_EQ(cut.gradient[k], static_cast<T>(whole.gradient[k]) * factor.first * factor.second) << k;
  }
  ASSERT_NEAR(static_cast<double>(sum), static_cast<double>(wanted), 1e-12 * static_cast<double>(1 + size));
}

template <class T>
void check_each(cases::Type type, std::uint32_t seed, std::vector<i64> counts) {
#if defined(__SANITIZE_THREAD__)
  counts.erase(counts.begin(), counts.end() - 1);  // it makes everything ten times slower
#endif
  for (const bool slab : {false, true}) {
    const int least = slab ? kMinFusedSlabLanes : kMinFusedGatherLanes;
    for (int lanes = slab ? kMaxSlabLanes : kMaxGatherLanes; lanes >= least; lanes /= 2) {
      for (const int split : {1, 4}) {
        if (slab && split > 1) continue;
        for (const i64 samples : counts) check<T>(type, slab, lanes, split, samples, ++seed);
      }
    }
  }
}

TEST(Fused, AgreesInEveryKernelWithEveryNumberOfLanes) {
  // One tile, some, and more of them than parts.
  check_each<float>(cases::Type::kFloat32, 1000, {16, 33, 300});
  check_each<double>(cases::Type::kFloat64, 1100, {9, 150});
  check_each<float>(cases::Type::kBFloat16, 1200, {70});
  check_each<float>(cases::Type::kFloat16, 1300, {70});
}

// A lane without samples reads those of others, and must not count them: not even infinite ones.
TEST(Fused, KeepsInfinitiesWhereTheyAre) {
  for (const bool slab : {false, true}) {
    std::mt19937 random(7);
    const Case<float> test(random, {20, 30, 0.4}, 9, cases::Type::kFloat32, true, Scale::kFirst);
    const i64 row = 4;
    test.dy.memory.as<float>()[row * test.dy.stride] = INFINITY;
    Fused<float> fused(test);
    const Gradients got = fused.run({slab, slab ? 8 : 32, 1, slab ? kSlabWarps : kWarps, 1 << 30, {}}, false);
    for (i64 k = 0; k < test.pattern.nnz(); ++k) {
      EXPECT_EQ(std::isfinite(got.gradient[k]), test.pattern.row_index[k] != row) << k;
    }
  }
}

}  // namespace
}  // namespace dendnorm::cuda
