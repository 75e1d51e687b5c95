// How calls are cut (cpu/plan.h), without any kernel: for many shapes, and for one to 128 threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cpu/plan.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

constexpr Widths kWidths[] = {{8, 8}, {16, 16}, {32, 32}, {32, 64}};
constexpr int kMostThreads = 128;

struct Shape {
  i64 samples, inputs, outputs, connections;
};

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = [] {
    std::vector<Shape> shapes;
    for (const i64 samples : {0, 1, 2, 5, 10, 31, 32, 33, 64, 100, 128, 129, 300, 512, 1000}) {
      for (const i64 inputs : {1, 17, 784, 4096}) {
        for (const i64 outputs : {1, 30, 1000, 33000}) {
          shapes.push_back({samples, inputs, outputs, inputs * outputs / 20});
        }
      }
      shapes.push_back({samples, 300, 200, 0});
      shapes.push_back({samples, 1000, 1000, 1000 * 1000});
    }
    return shapes;
  }();
  return all;
}

testing::Message named(const Shape& shape, const Widths& widths, int threads) {
  return testing::Message() << shape.samples << " samples, " << shape.inputs << " -> " << shape.outputs << " with "
                            << shape.connections << " connections, widths " << widths.forward << " and "
                            << widths.columns << ", " << threads << " threads";
}

// Memory that is never read: the plan asks where it lies and what is null.
template <class T>
T* somewhere(std::uintptr_t address = 1 << 20) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Activations activations(i64 samples, i64 neurons, bool feature_major) {
  return {somewhere<T>(), feature_major ? samples : neurons, feature_major,
          sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32};
}

template <class T>
Forward<T> forward_of(const Shape& shape, bool feature_major, int threads) {
  Forward<T> f{};
  f.samples = shape.samples;
  f.inputs = shape.inputs;
  f.outputs = shape.outputs;
  f.connections = shape.connections;
  f.x = activations<T>(shape.samples, shape.inputs, feature_major);
  f.y = activations<T>(shape.samples, shape.outputs, feature_major);
  static constexpr std::int32_t kSomewhere = 0;
  f.rows.perm = f.columns.start = &kSomewhere;
  f.threads.count = threads;
  return f;
}

enum class Wanted { kAll, kDx, kGradient, kBias };

template <class T>
Columns<T> columns_of(const Shape& shape, bool feature_major, int threads, Wanted wanted, bool factors) {
  Columns<T> c{};
  c.samples = shape.samples;
  c.inputs = shape.inputs;
  c.outputs = shape.outputs;
  c.connections = shape.connections;
  c.dy = activations<T>(shape.samples, shape.outputs, feature_major);
  if (wanted == Wanted::kAll || wanted == Wanted::kGradient) {
    c.x = activations<T>(shape.samples, shape.inputs, feature_major);
    c.gradient = somewhere<T>();
  }
  if (wanted == Wanted::kAll || wanted == Wanted::kDx) {
    c.dx = activations<T>(shape.samples, shape.inputs, feature_major);
  }
  if (wanted == Wanted::kAll || wanted == Wanted::kBias) c.bias_gradient = somewhere<T>();
  if (factors) c.factors.first = somewhere<const T>();
  c.threads.count = threads;
  return c;
}

// f(plan's arguments) for every shape, set of widths, layout and number of threads; few of them for most shapes.
template <class F>
void for_all(F f) {
  std::mt19937 random(1);
  for (const Shape& shape : shapes()) {
    for (const Widths& widths : kWidths) {
      for (int threads = 1; threads <= kMostThreads; threads += threads < 9 ? 1 : 1 + static_cast<int>(random() % 30)) {
        SCOPED_TRACE(named(shape, widths, threads));
        f(shape, widths, random() % 2 == 0, threads);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

// ---- What both plans promise ----

void expect_inside(std::vector<Region> regions, std::size_t bytes) {
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
  i64 end = 0;
  for (const Region& region : regions) {
    if (region.bytes == 0) continue;
    ASSERT_EQ(region.begin % kAlign, 0);
    ASSERT_GE(region.begin, end) << "regions overlap";
    end = region.begin + region.bytes;
  }
  ASSERT_LE(end, static_cast<i64>(bytes));
}

// Every item, a group's part, is a thread's; where threads pack alone, before every item whose tiles they do not hold.
void expect_shared(const Sharing& sharing, i64 groups, int threads) {
  const i64 items = sharing.parts * groups;
  ASSERT_GE(sharing.parts, 1);
  ASSERT_TRUE(items % threads == 0 || sharing.parts == threads) << "shares are equal";
  for (int t = 0; t < threads && sharing.alone; ++t) {
    const i64 first = share_begin(items, t, threads);
    i64 held = -1;
    for (i64 item = first; item < share_begin(items, t + 1, threads); ++item) {
      if (sharing.packs(item, first)) held = item / sharing.parts;
      ASSERT_EQ(held, item / sharing.parts);
    }
  }
}

// All threads together pack every tile, or each thread those that it needs, or nobody.
void expect_packed(const Packing& packing, const Tiles& tiles, const Sharing& sharing, bool needed) {
  ASSERT_GE(packing.step, 1);
  ASSERT_EQ(packing.pieces, needed && !sharing.alone ? packing.parts * tiles.count() : 0);
}

i64 slab_room(const Tiles& tiles, const Sharing& sharing, int threads, i64 neurons) {
  return sharing.alone ? threads * tiles.room(neurons) : tiles.total() * neurons;
}

template <class T>
void check_forward(const Shape& shape, const Widths& widths, bool feature_major, int threads) {
  const auto f = forward_of<T>(shape, feature_major, threads);
  const ForwardPlan plan = plan_forward(f, widths),
                    serial = plan_forward(forward_of<T>(shape, !feature_major, 1), widths);
  const i64 size = sizeof(T);
  ASSERT_TRUE(plan.threads >= 1 && plan.threads <= threads);
  ASSERT_EQ(plan.tiles.samples, shape.samples);
  ASSERT_LE(plan.tiles.width, widths.forward);
  // What decides bits: the same for one thread and the other layout.
  ASSERT_EQ(plan.tiles.total(), serial.tiles.total());
  ASSERT_EQ(plan.tiles.count(), serial.tiles.count());
  ASSERT_EQ(plan.spread, serial.spread);
  ASSERT_EQ(plan.order, serial.order);
  ASSERT_TRUE(plan.spread == 0 || shape.samples == 1);

  expect_shared(plan.sharing, plan.tiles.count(), plan.threads);
  expect_packed(plan.packing, plan.tiles, plan.sharing, !plan.in_place);
  ASSERT_TRUE(plan.block >= 1 && plan.block <= kBlock);
  expect_inside({plan.slabs, plan.sums, plan.permuted}, plan.workspace_bytes);
  if (plan.spread > 0) {
    ASSERT_GE(plan.sums.bytes, plan.spread * shape.outputs * size);
  } else if (!plan.in_place) {
    ASSERT_GE(plan.slabs.bytes, slab_room(plan.tiles, plan.sharing, plan.threads, shape.inputs) * size);
  }
  if (plan.order != Order::kThrough) {
    ASSERT_GE(plan.permuted.bytes, shape.connections * size);
  }
}

TEST(ForwardPlan, KeepsItsPromises) {
  for_all([](const Shape& shape, const Widths& widths, bool feature_major, int threads) {
    check_forward<float>(shape, widths, feature_major, threads);
    check_forward<double>(shape, widths, feature_major, threads);
  });
}

// Every group has tiles, and together they have each once.
void expect_grouped(const ColumnsPlan& plan) {
  ASSERT_EQ(plan.first_tile(0), 0);
  ASSERT_EQ(plan.first_tile(plan.groups), plan.tiles.count());
  for (int group = 0; group < plan.groups && plan.tiles.count() > 0; ++group) {
    ASSERT_LT(plan.first_tile(group), plan.first_tile(group + 1));
  }
}

template <class T>
void check_columns(const Shape& shape, const Widths& widths, bool feature_major, int threads, Wanted wanted,
                   bool factors) {
  const auto c = columns_of<T>(shape, feature_major, threads, wanted, factors);
  const ColumnsPlan plan = plan_columns(c, widths);
  const ColumnsPlan serial = plan_columns(columns_of<T>(shape, !feature_major, 1, wanted, !factors), widths);
  const i64 size = sizeof(T);
  ASSERT_TRUE(plan.threads >= 1 && plan.threads <= threads);
  ASSERT_EQ(plan.tiles.samples, shape.samples);
  ASSERT_LE(plan.tiles.width, widths.columns);
  // What decides bits: the same for one thread and the other layout.
  ASSERT_EQ(plan.tiles.total(), serial.tiles.total());
  ASSERT_EQ(plan.tiles.count(), serial.tiles.count());
  ASSERT_EQ(plan.groups, serial.groups);
  expect_grouped(plan);

  expect_shared(plan.sharing, plan.groups, plan.threads);
  expect_packed(plan.packing, plan.tiles, plan.sharing, !plan.in_place || c.bias_gradient != nullptr);
  ASSERT_TRUE(wanted == Wanted::kBias || (plan.block >= 1 && plan.block <= kBlock));
  expect_inside({plan.slabs, plan.scaled, plan.sums, plan.gradients}, plan.workspace_bytes);
  if (!plan.in_place) {
    ASSERT_GE(plan.slabs.bytes, slab_room(plan.tiles, plan.sharing, plan.threads, shape.outputs) * size);
  }
  if (factors && c.dx.data != nullptr) {
    ASSERT_GE(plan.scaled.bytes, shape.connections * size);
  }
  if (c.bias_gradient != nullptr) {
    ASSERT_GE(plan.sums.bytes, plan.tiles.count() * shape.outputs * size);
  }
  if (c.gradient != nullptr) {
    ASSERT_GE(plan.distance, shape.connections);
    ASSERT_EQ(plan.distance * size % kAlign, 0);
    ASSERT_GE(plan.gradients.bytes, (plan.groups - 1) * plan.distance * size);
  }
}

TEST(ColumnsPlan, KeepsItsPromises) {
  for_all([](const Shape& shape, const Widths& widths, bool feature_major, int threads) {
    for (const Wanted wanted : {Wanted::kAll, Wanted::kDx, Wanted::kGradient, Wanted::kBias}) {
      check_columns<float>(shape, widths, feature_major, threads, wanted, threads % 2 == 0);
      check_columns<double>(shape, widths, feature_major, threads, wanted, threads % 2 == 0);
    }
  });
}

// ---- What is used where it lies ----

TEST(ForwardPlan, TakesWholeAlignedSlabsInPlace) {
  const Shape shape{32, 100, 50, 250};
  const auto in_place = [&](auto change) {
    auto f = forward_of<float>(shape, true, 1);
    change(f);
    return plan_forward(f, {32, 32}).in_place;
  };
  EXPECT_TRUE(in_place([](auto&) {}));
  EXPECT_TRUE(in_place([](auto& f) { f.samples = f.x.stride = 16; }));
  EXPECT_FALSE(in_place([](auto& f) { f.samples = f.x.stride = 30; })) << "not whole";
  EXPECT_FALSE(in_place([](auto& f) { f.samples = f.x.stride = 64; })) << "two tiles";
  EXPECT_FALSE(in_place([](auto& f) { f.x.stride = 33; })) << "gaps";
  EXPECT_FALSE(in_place([](auto& f) { f.x.data = somewhere<float>((1 << 20) + 16); })) << "not aligned";
  EXPECT_FALSE(in_place([](auto& f) { f.x.type = Type::kBFloat16; })) << "another type";
  EXPECT_FALSE(in_place([](auto& f) { f.x.feature_major = false; })) << "batch-major";
  EXPECT_TRUE(in_place([](auto& f) {
    f.samples = 1;
    f.x = {somewhere<float>(4), 100, false, Type::kFloat32};
  })) << "a single sample";
}

TEST(ColumnsPlan, WritesNoScaleIntoTheCallersMemory) {
  auto c = columns_of<float>({32, 100, 50, 250}, true, 1, Wanted::kAll, false);
  EXPECT_TRUE(plan_columns(c, {32, 32}).in_place);
  c.row_scale = somewhere<const float>();
  EXPECT_FALSE(plan_columns(c, {32, 32}).in_place);
}

// ---- Threads in proportion to the work ----

i64 work_of(const Shape& s) {
  return s.connections * std::max<i64>(s.samples, 8) + 4 * (s.inputs + s.outputs) * s.samples;
}

// Connections and segments that the busiest thread visits, in all its tiles, beside the mean: 1 where shares are equal.
double busiest(const Sharing& sharing, i64 groups, int threads, const std::vector<std::int32_t>& start) {
  const i64 segments = static_cast<i64>(start.size()) - 1, items = sharing.parts * groups;
  const auto cost = [&](i64 from, i64 to) { return start[to] - start[from] + 4 * (to - from); };
  i64 most = 0;
  for (int t = 0; t < threads; ++t) {
    i64 share = 0;
    for (i64 item = share_begin(items, t, threads); item < share_begin(items, t + 1, threads); ++item) {
      const i64 part = item % sharing.parts;
      share += cost(part_begin(start.data(), segments, part, sharing.parts),
                    part_begin(start.data(), segments, part + 1, sharing.parts));
    }
    most = std::max(most, share);
  }
  return static_cast<double>(most) * threads / static_cast<double>(cost(0, segments) * groups);
}

// A view whose segments have as many connections as chance gives them.
std::vector<std::int32_t> start_of(i64 segments, i64 connections) {
  std::mt19937 random(7);
  std::vector<std::int32_t> start(segments + 1);
  for (i64 k = 0; k < connections; ++k) ++start[1 + random() % segments];
  for (i64 i = 0; i < segments; ++i) start[i + 1] += start[i];
  return start;
}

TEST(Plans, GiveThreadsInProportionToTheWork) {
  constexpr i64 kWorthThread = 200000;
  const struct {
    const char* name;
    Shape shape;
    double within;  // of the mean: the most for any number of threads, for shares are whole grains of 16 neurons
  } cases[] = {{"64_100", {10, 64, 100, 1280}, 1},
               {"784_1000", {128, 784, 1000, 31360}, 1.25},
               {"2048_2048", {256, 2048, 2048, 209715}, 1.3},
               {"4096_4096", {128, 4096, 4096, 167772}, 1.3},
               {"768_3072", {1024, 768, 3072, 235930}, 1.35}};
  for (const auto& [name, shape, within] : cases) {
    SCOPED_TRACE(name);
    const auto rows = start_of(shape.outputs, shape.connections), columns = start_of(shape.inputs, shape.connections);
    for (int threads = 1; threads <= kMostThreads; ++threads) {
      SCOPED_TRACE(threads);
      const i64 wanted = std::min<i64>(threads, (work_of(shape) + kWorthThread - 1) / kWorthThread);
      const auto f = plan_forward(forward_of<float>(shape, false, threads), {32, 64});
      const auto c = plan_columns(columns_of<float>(shape, false, threads, Wanted::kAll, false), {32, 64});
      ASSERT_EQ(f.threads, wanted);
      ASSERT_EQ(c.threads, wanted);
      const double forward = busiest(f.sharing, f.tiles.count(), f.threads, rows);
      const double backward = busiest(c.sharing, c.groups, c.threads, columns);
      ASSERT_LE(forward, within);
      ASSERT_LE(backward, within);
      if (threads == 8 || threads == 32 || threads == 64) {
        const std::string key = std::string(name) + "_of_" + std::to_string(threads);
        RecordProperty(key, std::to_string(f.threads) + " " + std::to_string(f.threads / forward) + " " +
                                std::to_string(c.threads / backward));
      }
    }
  }
}

}  // namespace
}  // namespace dendnorm::cpu
