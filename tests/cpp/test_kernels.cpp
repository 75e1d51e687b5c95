// Every kernel set that this processor runs, against sums in long double over the connections (cases.h).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cases.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "threads.h"

namespace dendnorm::cpu {
namespace {

using cases::Case;
using cases::Gradients;
using cases::Guarded;
using cases::i32;
using cases::i64;
using cases::kWanted;
using cases::Matrix;
using cases::Scale;
using cases::Shape;
using cases::sixteen_bits_value;
using cases::Type;
using cases::Wanted;

struct Set {
  const char* name;
  const Kernels* kernels;
  const KernelsOfBFloat16* bfloat16;
};

std::vector<Set> available() {
  std::vector<Set> sets{{"default", &kernels_generic(), &kernels_generic_bf16()}};
#ifdef DENDNORM_X86
  if (chosen_capability() >= Capability::kAvx2) sets.push_back({"avx2", &kernels_avx2(), &kernels_avx2_bf16()});
  if (chosen_capability() >= Capability::kAvx512) {
    sets.push_back({"avx512", &kernels_avx512(), &kernels_avx512_bf16()});
  }
  if (multiplies_bfloat16()) sets.push_back({"avx512_dot", &kernels_avx512(), &kernels_avx512_dot()});
#elif defined(__aarch64__)
  sets.push_back({"neon", &kernels_neon(), &kernels_neon_bf16()});
#endif
  return sets;
}

// ---- Plan, workspace, kernel ----

// run(kernels) with those that take the activations as they are.
template <class T, class F>
void with_kernels(const Set& set, const Activations& activations, i64 samples, F run) {
  if constexpr (sizeof(T) == 4) {
    if (stay_bfloat16(activations, samples)) return run(*set.bfloat16);
  }
  run(set.kernels->of<T>());
}

template <class T, class Of>
void run(const Of& kernels, const Forward<T>& f) {
  const ForwardPlan plan = plan_forward(f, kernels.widths, kernels.kSlabBytes);
  const Guarded room(plan.workspace_bytes);
  kernels.forward(f, plan, plan.workspace_bytes == 0 ? nullptr : room.data());
  room.expect_whole();
}

template <class T, class Of>
void run(const Of& kernels, const Columns<T>& c) {
  const ColumnsPlan plan = plan_columns(c, kernels.widths, kernels.kSlabBytes);
  const Guarded room(plan.workspace_bytes);
  kernels.columns(c, plan, plan.workspace_bytes == 0 ? nullptr : room.data());
  room.expect_whole();
}

template <class T>
Factors<T> factors_of(const Case<T>& test) {
  return {test.scale != Scale::kNone ? test.first.data() : nullptr,
          test.scale == Scale::kBoth ? test.second.data() : nullptr};
}

// Whether results that are feature-major may be written where they lie.
template <class T>
bool whole_lines(const Case<T>& test) {
  return test.samples % 16 == 0;
}

// Where a forward pass finds its values, and what its indices are.
enum class Values { kInColumnOrder, kInRowOrder, kInRowOrderNarrow };

template <class T>
std::vector<double> forward(const Set& set, const Case<T>& test, bool bias, int threads,
                            Values lie = Values::kInColumnOrder) {
  Matrix y(test.samples, test.shape.outputs, test.x.type, test.x.feature_major, whole_lines(test) ? 0 : 3, 0);
  Forward<T> f{};
  f.samples = test.samples;
  f.inputs = test.shape.inputs;
  f.outputs = test.shape.outputs;
  f.connections = test.pattern.nnz();
  f.x = test.x.template view<Activations>();
  f.y = y.view<Activations>();
  f.rows = test.template rows<View>();
  f.columns = test.template columns<View>();
  f.values = test.values.data();
  f.factors = factors_of(test);
  f.threads = threads_of(threads);
  if (bias) f.bias = test.bias.data();
  std::vector<T> ordered(static_cast<std::size_t>(f.connections));
  std::vector<std::uint16_t> narrow(ordered.size());
  if (lie != Values::kInColumnOrder) {
    for (std::size_t k = 0; k < ordered.size(); ++k) {
      ordered[k] = test.values[static_cast<std::size_t>(f.rows.perm[k])];
      narrow[k] = static_cast<std::uint16_t>(f.rows.index[k]);
    }
    f.values = ordered.data();
    f.columns = {};
    f.rows.perm = nullptr;
    if (lie == Values::kInRowOrderNarrow) {
      f.rows.index = nullptr;
      f.narrow = narrow.data();
    }
  }
  with_kernels<T>(set, f.x, f.samples, [&](const auto& kernels) { run(kernels, f); });
  y.memory.expect_whole();
  std::vector<double> result;
  for (i64 b = 0; b < test.samples; ++b) {
    for (i64 i = 0; i < test.shape.outputs; ++i) result.push_back(y(b, i));
  }
  return result;
}

template <class T>
void check_forward(const Set& set, const Case<T>& test, bool bias) {
  const std::vector<double> y = forward(set, test, bias, 1);
  cases::expect_output(test, bias, y);
  for (const int threads : {2, 3, 4, 7}) {
    ASSERT_EQ(forward(set, test, bias, threads), y) << threads << " threads";
  }
  const std::vector<double> ordered = forward(set, test, bias, 1, Values::kInRowOrder);
  cases::expect_output(test, bias, ordered);
  for (const int threads : {1, 3}) {
    ASSERT_EQ(forward(set, test, bias, threads, Values::kInRowOrderNarrow), ordered) << threads << " threads";
  }
}

template <class T>
Gradients columns(const Set& set, const Case<T>& test, const Wanted& wanted, int threads) {
  const i64 inputs = test.shape.inputs, outputs = test.shape.outputs;
  const auto bytes = [](i64 count, std::size_t size) { return static_cast<std::size_t>(count) * size; };
  Matrix dx(test.samples, inputs, test.x.type, test.x.feature_major, whole_lines(test) ? 0 : 1, 0);
  const Guarded gradient(bytes(test.pattern.nnz(), sizeof(T))), dots(bytes(inputs, 8)), bias(bytes(outputs, sizeof(T)));
  Columns<T> c{};
  c.samples = test.samples;
  c.inputs = inputs;
  c.outputs = outputs;
  c.connections = test.pattern.nnz();
  c.dy = test.dy.template view<Activations>();
  if (wanted.gradient) c.x = test.x.template view<Activations>();
  if (wanted.dx) c.dx = dx.view<Activations>();
  c.columns = test.template columns<View>();
  c.values = test.values.data();
  if (test.scale == Scale::kApart) {
    c.row_scale = test.first.data();
    c.scale = test.for_all;
  } else {
    c.factors = factors_of(test);
  }
  if (wanted.gradient) c.gradient = gradient.as<T>();
  c.finish = wanted.finish;
  if (wanted.dots) {
    if (test.scale != Scale::kApart) c.dot_weights = test.weights.data();
    c.dots = dots.as<double>();
  }
  if (wanted.bias) c.bias_gradient = bias.as<T>();
  c.threads = threads_of(threads);
  with_kernels<T>(set, c.dy, c.samples, [&](const auto& kernels) { run(kernels, c); });
  for (const Guarded* guarded : {&gradient, &dots, &bias, static_cast<const Guarded*>(&dx.memory)}) {
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
void check_columns(const Set& set, const Case<T>& test, const Wanted& wanted) {
  const Gradients got = columns(set, test, wanted, 1);
  cases::expect_gradients(test, wanted, got);
  for (const int threads : {2, 3, 4, 7}) {
    ASSERT_TRUE(columns(set, test, wanted, threads) == got) << threads << " threads";
  }
}

// ---- The cases ----

constexpr i64 kSamples[] = {0, 1, 2, 3, 4, 5, 8, 10, 16, 17, 31, 32, 33, 40, 48, 63, 64, 65, 100, 128, 129};

class EverySet : public testing::TestWithParam<Set> {};

template <class T>
void check_all(const Set& set, const Shape& shape, i64 samples, Type type, bool feature_major, std::uint32_t seed) {
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
  if (type == Type::kBFloat16 && samples > 16) return;  // takes no row_scale
  const Case<T> apart(random, shape, samples, type, feature_major, Scale::kApart);
  for (const Wanted& wanted : kWanted) check_columns(set, apart, wanted);
}

TEST_P(EverySet, AgreesWithPlainSums) {
  std::uint32_t seed = 0;
  for (const i64 samples : kSamples) {
    for (const bool feature_major : {false, true}) {
      const Shape shapes[] = {{37, 53, 0.3}, {50, 19, 1}, {70, 33, 0.05}};
      const Shape& shape = shapes[seed++ % 3];
      check_all<float>(GetParam(), shape, samples, Type::kFloat32, feature_major, seed);
      check_all<double>(GetParam(), shape, samples, Type::kFloat64, feature_major, seed);
    }
  }
}

TEST_P(EverySet, ReadsAndWritesSixteenBits) {
  std::uint32_t seed = 100;
  for (const i64 samples : {1, 2, 7, 10, 17, 32, 65, 70, 128, 129, 256}) {
    for (const bool feature_major : {false, true}) {
      for (const Type type : {Type::kBFloat16, Type::kFloat16}) {
        check_all<float>(GetParam(), {45, 39, 0.2}, samples, type, feature_major, ++seed);
      }
    }
  }
}

TEST_P(EverySet, TakesShapesAtTheEdge) {
  std::uint32_t seed = 200;
  for (const Shape& shape : {Shape{1, 2, 1}, Shape{1, 40, 0.5}, Shape{300, 2, 0.4}, Shape{2, 300, 0.4},
                             Shape{20, 30, 0}, Shape{16, 16, 1}, Shape{17, 15, 0.9}}) {
    for (const i64 samples : {1, 3, 33}) {
      check_all<float>(GetParam(), shape, samples, Type::kFloat32, seed % 2 == 0, seed);
      check_all<double>(GetParam(), shape, samples, Type::kFloat64, seed % 2 == 1, seed);
      ++seed;
    }
  }
}

// Enough work for every thread to get some, with rows of very different lengths.
TEST_P(EverySet, SplitsLargeLayersWithTheSameBits) {
  check_all<float>(GetParam(), {400, 300, 0.1}, 100, Type::kFloat32, false, 300);
  check_all<double>(GetParam(), {300, 400, 0.1}, 70, Type::kFloat64, true, 301);
}

// Two to eight groups of tiles, which threads have to themselves or share.
TEST_P(EverySet, AddsGroupsOfTilesWithTheSameBits) {
  for (const i64 samples : {110, 128, 192, 200, 256, 490, 512}) {
    check_all<float>(GetParam(), {60, 40, 0.2}, samples, Type::kFloat32, samples % 128 == 0, 309);
    check_all<double>(GetParam(), {40, 60, 0.2}, samples, Type::kFloat64, samples % 128 != 0, 310);
  }
}

// Many outputs, whose tiles are narrower or shared, and activations that are packed in long runs.
TEST_P(EverySet, TakesTilesThatNoCacheHolds) {
  check_all<float>(GetParam(), {4, 9000, 0.2}, 128, Type::kFloat32, false, 311);
  check_all<double>(GetParam(), {4, 9000, 0.2}, 128, Type::kFloat64, true, 312);
  check_all<float>(GetParam(), {3, 33000, 0.2}, 64, Type::kFloat32, false, 313);
}

// One sample: sums over several parts of the columns, and rows where the outputs are too many to stay near.
TEST_P(EverySet, TakesASingleSampleOfLargeLayers) {
  check_all<float>(GetParam(), {400, 300, 0.8}, 1, Type::kFloat32, false, 302);
  check_all<double>(GetParam(), {400, 300, 0.8}, 1, Type::kFloat64, false, 303);
  check_all<float>(GetParam(), {5, 33000, 0.4}, 1, Type::kFloat32, false, 304);
  check_all<double>(GetParam(), {5, 33000, 0.4}, 1, Type::kFloat64, true, 305);
}

// Batch-major rows that are multiples of 1 KiB apart are packed in longer runs than others.
TEST_P(EverySet, PacksRowsThatShareCacheSets) {
  for (const i64 samples : {3, 70}) {
    check_all<float>(GetParam(), {512, 253, 0.05}, samples, Type::kFloat32, false, 306);
    check_all<double>(GetParam(), {256, 381, 0.05}, samples, Type::kFloat64, false, 307);
  }
  check_all<float>(GetParam(), {512, 509, 0.05}, 33, Type::kBFloat16, false, 308);
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
      Forward<float> f{count,
                       n,
                       n,
                       n,
                       from,
                       y.view<Activations>(),
                       {start.data(), index.data(), perm.data()},
                       {start.data(), index.data(), nullptr},
                       ones.data(),
                       {},
                       nullptr,
                       threads_of(1)};
      run(GetParam().kernels->of<float>(), f);
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
  const Set best = available().back();
  EXPECT_EQ(&chosen_kernels(), best.kernels);
  EXPECT_EQ(&chosen_kernels_bf16(), best.bfloat16);
  EXPECT_EQ(std::string(best.name).rfind(capability(), 0), 0U) << best.name;
}

}  // namespace
}  // namespace dendnorm::cpu
