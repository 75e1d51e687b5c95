// Factors that a pass works out in its first launch, where b = 0: the bits of row_factors, and of a pass that is given
// them.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "../cpp/cases.h"
#include "cuda/kernels.h"
#include "cuda_on_host.h"

namespace dendnorm::cuda {
namespace {

using cases::Case;
using cases::i64;
using cases::Matrix;

constexpr Device kDevice{132, 227 * 1024};

template <class T>
struct Passes {
  Passes(std::uint32_t seed, i64 samples, bool feature_major, bool per_row, double a)
      : random(seed),
        test(random, {61, 45, 0.2}, samples, sizeof(T) == 8 ? cases::Type::kFloat64 : cases::Type::kFloat32,
             feature_major, cases::Scale::kNone),
        factors(test.shape.outputs),
        own_factors(test.shape.outputs),
        inverses(test.shape.outputs),
        own_inverses(test.shape.outputs) {
    std::normal_distribution<double> normal;
    for (i64 i = 0; i < test.shape.outputs; ++i) e.push_back(static_cast<T>(1e3 * normal(random)));
    layer.rows = test.shape.outputs;
    layer.connections = test.pattern.nnz();
    layer.view = test.template rows<View>();
    layer.values = test.values.data();
    layer.excitability = {e.data(), per_row};
    layer.norm = {a, 0, 2};
    counted = {layer.view.start, layer.excitability, a, own_factors.data(), own_inverses.data()};
    EXPECT_EQ(row_factors(layer, factors.data(), inverses.data(), nullptr, nullptr), cudaSuccess);
  }

  std::vector<double> forward_values(bool own) {
    const Matrix y(test.samples, test.shape.outputs, test.x.type, test.x.feature_major, 0, 0);
    Forward<T> f{};
    f.samples = test.samples;
    f.inputs = test.shape.inputs;
    f.outputs = test.shape.outputs;
    f.connections = test.pattern.nnz();
    f.x = test.x.template view<Activations>();
    f.y = y.template view<Activations>();
    f.rows = layer.view;
    f.values = test.values.data();
    f.factors = own ? own_factors.data() : factors.data();
    if (own) f.counted = counted;
    const cases::Guarded workspace(forward_workspace(f, kDevice), 0, 256);
    f.workspace = workspace.data();
    EXPECT_EQ(forward(f, kDevice, nullptr), cudaSuccess);
    std::vector<double> result;
    for (i64 b = 0; b < test.samples; ++b) {
      for (i64 i = 0; i < test.shape.outputs; ++i) result.push_back(y(b, i));
    }
    return result;
  }

  std::vector<double> columns_values(bool own) {
    const Matrix dx(test.samples, test.shape.inputs, test.x.type, test.x.feature_major, 0, 0);
    std::vector<T> gradient(test.pattern.nnz()), bias(test.shape.outputs);
    std::vector<double> dots(dot_parts(test.pattern.nnz()));
    Columns<T> c{};
    c.samples = test.samples;
    c.inputs = test.shape.inputs;
    c.outputs = test.shape.outputs;
    c.connections = test.pattern.nnz();
    c.dy = test.dy.template view<Activations>();
    c.x = test.x.template view<Activations>();
    c.dx = dx.template view<Activations>();
    c.columns = test.template columns<View>();
    c.values = test.values.data();
    c.factors = own ? own_factors.data() : factors.data();
    c.gradient = gradient.data();
    c.finish = true;
    c.dot_weights = own ? own_inverses.data() : inverses.data();
    c.dots = dots.data();
    c.bias_gradient = bias.data();
    if (own) c.counted = counted;
    const cases::Guarded workspace(columns_workspace(c, kDevice), 0, 256);
    c.workspace = workspace.data();
    EXPECT_EQ(columns(c, kDevice, nullptr), cudaSuccess);
    std::vector<double> result(gradient.begin(), gradient.end());
    result.insert(result.end(), dots.begin(), dots.end());
    result.insert(result.end(), bias.begin(), bias.end());
    for (i64 b = 0; b < test.samples; ++b) {
      for (i64 j = 0; j < test.shape.inputs; ++j) result.push_back(dx(b, j));
    }
    return result;
  }

  std::mt19937 random;
  Case<T> test;
  std::vector<T> e;
  std::vector<Factor<T>> factors, own_factors;
  std::vector<double> inverses, own_inverses;
  Layer<T> layer{};
  Counted<T> counted;
};

template <class T>
void check_all() {
  std::uint32_t seed = 0;
  for (const i64 samples : {10, 40}) {
    for (const double a : {0.0, 1.0, 0.5, 1.3}) {
      ++seed;
      Passes<T> passes(seed, samples, seed % 2 == 0, seed % 3 == 0, a);
      EXPECT_EQ(passes.forward_values(true), passes.forward_values(false)) << "a " << a << " samples " << samples;
      passes.own_factors.assign(passes.own_factors.size(), {0, 0});
      passes.own_inverses.assign(passes.own_inverses.size(), 0);
      EXPECT_EQ(passes.columns_values(true), passes.columns_values(false)) << "a " << a << " samples " << samples;
      EXPECT_EQ(passes.own_inverses, passes.inverses);
    }
  }
}

TEST(Counted, HasTheBitsOfFactorsThatAreGiven) {
  check_all<float>();
  check_all<double>();
}

// What packs activations works out the factors, too.
TEST(Counted, TakesNoLaunchOfItsOwn) {
  Passes<float> passes(7, 40, false, false, 1);
  const auto launched = [&](auto run) {
    const std::uint64_t before = cuda_on_host::launches();
    run();
    return cuda_on_host::launches() - before;
  };
  EXPECT_EQ(launched([&] { passes.forward_values(true); }), 2u);  // prepare, gather
  EXPECT_EQ(launched([&] { passes.columns_values(true); }), 3u);  // prepare, dX, the gradient
}

}  // namespace
}  // namespace dendnorm::cuda
