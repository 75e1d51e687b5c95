// Rewiring and patterns on a GPU, run on the processor: the same as core/ does, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "core/pattern.h"
#include "core/random.h"
#include "core/rewire.h"
#include "cuda/cub.h"
#include "cuda/pattern.h"
#include "cuda/rewire.h"
#include "cuda_on_host.h"

namespace dendnorm {
namespace {

using i32 = std::int32_t;
using i64 = std::int64_t;
using Random = std::mt19937_64;

// A sanitizer makes a fiber ten times slower, and needs a kernel only once to see what it does.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Device memory: exactly as much as asked for, full of what is of no use, so that AddressSanitizer sees every step
// beyond it and a value that nobody wrote is a wrong one.
template <class T>
struct Memory {
  explicit Memory(i64 count) : count(count), bytes(new std::byte[count * sizeof(T)]) {
    std::memset(bytes.get(), 0xa5, count * sizeof(T));
  }
  explicit Memory(const std::vector<T>& values) : Memory(static_cast<i64>(values.size())) {
    if (count > 0) std::memcpy(bytes.get(), values.data(), count * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>(bytes.get()); }
  std::vector<T> read() const { return std::vector<T>(data(), data() + count); }
  i64 count;
  std::unique_ptr<std::byte[]> bytes;
};

#define EXPECT_RUN(call) ASSERT_EQ(call, cudaSuccess)

struct Layer {
  i64 rows, cols;
  std::vector<i32> ccol, row;
  i64 nnz() const { return static_cast<i64>(row.size()); }
  bool operator==(const Layer&) const = default;
};

Layer layer_of(i64 rows, i64 cols, const std::vector<i64>& keys) {
  Layer layer{rows, cols, std::vector<i32>(cols + 1), {}};
  for (const i64 key : keys) {
    ++layer.ccol[key / rows + 1];
    layer.row.push_back(static_cast<i32>(key % rows));
  }
  std::partial_sum(layer.ccol.begin(), layer.ccol.end(), layer.ccol.begin());
  return layer;
}

Layer random_layer(Random& random, i64 rows, i64 cols, i64 nnz, bool in_few_columns = false) {
  std::vector<i64> keys;
  const i64 used = in_few_columns ? (cols + 2) / 3 : cols;
  while (static_cast<i64>(keys.size()) < nnz) {
    const i64 column = (in_few_columns ? 3 : 1) * static_cast<i64>(random() % used);
    if (column < cols) keys.push_back(column * rows + static_cast<i64>(random() % rows));
    if (static_cast<i64>(keys.size()) == nnz) {
      std::sort(keys.begin(), keys.end());
      keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    }
  }
  return layer_of(rows, cols, keys);
}

template <class T>
std::vector<T> random_scores(Random& random, i64 n, bool with_nan = false) {
  using Limits = std::numeric_limits<T>;
  std::vector<T> scores(n);
  const unsigned kinds = 1 + random() % 12;  // few: many ties
  for (T& score : scores) {
    switch (const unsigned kind = random() % kinds) {
      case 0: score = random() % 2 == 0 ? T{0} : -T{0}; break;
      case 1: score = Limits::infinity(); break;
      case 2: score = Limits::denorm_min() * static_cast<T>(random() % 3); break;
      case 3: score = std::nextafter(T{1}, static_cast<T>(random() % 3)); break;
      case 4: score = static_cast<T>(random()) * static_cast<T>(1e-19); break;
      case 5: score = -static_cast<T>(random() % 5); break;
      default: score = static_cast<T>(kind) - 7;
    }
  }
  if (with_nan && n > 0) {
    for (int i = 0; i < 3; ++i) scores[random() % n] = random() % 2 == 0 ? Limits::quiet_NaN() : -Limits::quiet_NaN();
  }
  return scores;
}

template <class T>
void check_weakest(const std::vector<T>& scores, i64 k, const std::vector<std::uint8_t>*& out) {
  static std::vector<std::uint8_t> chosen;
  const auto n = static_cast<i64>(scores.size());
  const Memory<T> score(scores);
  const Memory<std::uint8_t> got(n);
  const Memory<std::byte> workspace(static_cast<i64>(cuda::weakest_workspace<T>(n)));
  Status status;
  EXPECT_RUN(cuda::weakest(score.data(), n, k, got.data(), &status, workspace.data(), nullptr));
  const auto want = std::make_unique<bool[]>(n + 1);
  mark_smallest(scores.data(), n, k, want.get());
  chosen = got.read();
  for (i64 i = 0; i < n; ++i) ASSERT_EQ(chosen[i], want[i] ? 1 : 0) << "position " << i << " of " << n << ", k " << k;
  const auto nan = std::find_if(scores.begin(), scores.end(), is_nan<T>);
  ASSERT_EQ(status.code, nan == scores.end() ? kClear : code_of(Fault::kNan, nan - scores.begin()));
  out = &chosen;
}

template <class T>
class Weakest : public testing::Test {};
using Floats = testing::Types<float, double>;
TYPED_TEST_SUITE(Weakest, Floats);

TYPED_TEST(Weakest, AreThoseOfTheProcessor) {
  Random random(1);
  const std::vector<std::uint8_t>* chosen;
  for (int round = 0; round < (kSanitized ? 20 : 100); ++round) {
    cuda_on_host::set_order(round);
    const i64 n = round < 5 ? round : static_cast<i64>(random() % (round % 10 == 9 ? 8000 : 700));
    const auto scores = random_scores<TypeParam>(random, n, round % 4 == 0);
    const i64 k = round % 7 == 0 ? 0 : round % 7 == 1 ? n : static_cast<i64>(random() % (n + 1));
    ASSERT_NO_FATAL_FAILURE(check_weakest(scores, k, chosen));
  }
}

TYPED_TEST(Weakest, HoldWithMoreTilesThanOneBlockAddsUpAtOnce) {
  if (kSanitized) GTEST_SKIP() << "too slow";
  Random random(2);
  const i64 n = 300 * 1024 + 17;  // 301 tiles
  std::vector<TypeParam> scores(n);
  for (auto& score : scores) score = static_cast<TypeParam>(random() % 3);
  const std::vector<std::uint8_t>* chosen;
  ASSERT_NO_FATAL_FAILURE(check_weakest(scores, n / 2, chosen));
}

// One rewiring of a layer by core/'s rules, and what all its arrays must then be.
struct Rewired {
  Layer left, layer;
  std::vector<i32> removed, source;
  std::vector<i64> keys;
};

std::vector<i64> keys_on_processor(const Layer& layer, i64 k, const Stream& random) {
  std::vector<i64> keys(k);
  const i64 empty = layer.rows * layer.cols - layer.nnz();
  std::iota(keys.begin(), keys.end(), 0);
  if (0 < k && k < empty) {
    const Bijection shuffled(static_cast<std::uint64_t>(empty), random);
    for (i64& key : keys) key = static_cast<i64>(shuffled(static_cast<std::uint64_t>(key)));
    std::sort(keys.begin(), keys.end());
  }
  for (i64& key : keys) key = empty_key(key, layer.ccol.data(), layer.row.data(), layer.rows, layer.cols);
  return keys;
}

Rewired on_processor(const Layer& layer, const std::vector<std::uint8_t>& dropped, i64 k, const Stream& random) {
  Rewired made{layer, layer, std::vector<i32>(k), std::vector<i32>(layer.nnz()), {}};
  made.left.row.resize(layer.nnz() - k);
  excise(layer.ccol.data(), layer.row.data(), {0, layer.cols, 0}, dropped.data(), made.left.ccol.data(),
         made.left.row.data(), made.removed.data());
  made.keys = keys_on_processor(made.left, k, random);
  EXPECT_EQ(replace_connections(layer.ccol.data(), layer.row.data(), layer.rows, {0, layer.cols, 0}, dropped.data(),
                                made.keys.data(), k, made.layer.ccol.data(), made.layer.row.data(), made.source.data()),
            -1);
  return made;
}

cuda::Dropping dropping(const Layer& layer, const Memory<i32>& ccol, const Memory<i32>& row,
                        const Memory<std::uint8_t>& dropped) {
  return {layer.rows, layer.cols, layer.nnz(), ccol.data(), row.data(), dropped.data()};
}

struct OnDevice {
  Memory<i32> ccol, row;
  explicit OnDevice(const Layer& layer) : ccol(layer.ccol), row(layer.row) {}
};

void rewire_on_device(const Layer& layer, const std::vector<std::uint8_t>& chosen, i64 k, const Stream& random,
                      Rewired* made, Status* status) {
  const i64 nnz = layer.nnz();
  const OnDevice old(layer);
  const Memory<std::uint8_t> dropped(chosen);
  const cuda::Dropping d = dropping(layer, old.ccol, old.row, dropped);
  const Memory<i32> ccol_left(layer.cols + 1), row_left(nnz - k), removed(k), ccol(layer.cols + 1), row(nnz),
      source(nnz);
  {
    const Memory<std::byte> workspace(static_cast<i64>(cuda::excise_workspace(nnz)));
    EXPECT_RUN(
        cuda::excise(d, k, ccol_left.data(), row_left.data(), removed.data(), status, workspace.data(), nullptr));
  }
  const Memory<i64> keys(k);
  {
    std::size_t bytes = 0;
    EXPECT_RUN(cuda::empty_positions_workspace(layer.rows * layer.cols - nnz + k, k, &bytes));
    const Memory<std::byte> workspace(static_cast<i64>(bytes));
    EXPECT_RUN(cuda::empty_positions(ccol_left.data(), row_left.data(), nnz - k, layer.rows, layer.cols, k, random,
                                     keys.data(), workspace.data(), nullptr));
  }
  const Memory<std::byte> workspace(static_cast<i64>(cuda::replace_connections_workspace(nnz)));
  EXPECT_RUN(cuda::replace_connections(d, keys.data(), k, ccol.data(), row.data(), source.data(), status,
                                       workspace.data(), nullptr));
  made->left = {layer.rows, layer.cols, ccol_left.read(), row_left.read()};
  made->layer = {layer.rows, layer.cols, ccol.read(), row.read()};
  made->removed = removed.read();
  made->source = source.read();
  made->keys = keys.read();
}

void check_transpose(const Layer& layer) {
  const i64 nnz = layer.nnz();
  const OnDevice from(layer);
  const Memory<i32> crow(layer.rows + 1), col(nnz), perm(nnz);
  std::size_t bytes = 0;
  EXPECT_RUN(cuda::transpose_pattern_workspace(nnz, layer.rows, &bytes));
  const Memory<std::byte> workspace(static_cast<i64>(bytes));
  EXPECT_RUN(cuda::transpose_pattern(from.ccol.data(), layer.cols, from.row.data(), nnz, layer.rows, crow.data(),
                                     col.data(), perm.data(), workspace.data(), nullptr));
  std::vector<i32> want_crow(layer.rows + 1), want_col(nnz), want_perm(nnz);
  transpose_pattern(layer.ccol.data(), layer.cols, layer.row.data(), layer.rows, want_crow.data(), want_col.data(),
                    want_perm.data());
  ASSERT_EQ(crow.read(), want_crow);
  ASSERT_EQ(col.read(), want_col);
  ASSERT_EQ(perm.read(), want_perm);

  const Memory<double> marks(kMarks);
  const Memory<unsigned long long> sum(1);
  EXPECT_RUN(
      cuda::pattern_mark(from.ccol.data(), layer.cols + 1, from.row.data(), nnz, sum.data(), marks.data(), nullptr));
  std::vector<double> want_marks(kMarks);
  pattern_mark(layer.ccol.data(), layer.cols + 1, layer.row.data(), nnz, want_marks.data());
  ASSERT_EQ(marks.read(), want_marks);
}

template <class T>
void check_one_rewiring(Random& random, Layer& layer, i64 k, std::uint64_t step) {
  const std::vector<std::uint8_t>* chosen;
  const auto scores = random_scores<T>(random, layer.nnz());
  ASSERT_NO_FATAL_FAILURE(check_weakest(scores, k, chosen));
  std::vector<std::uint8_t> dropped = *chosen;
  for (auto& flag : dropped) flag = flag != 0 ? std::vector<std::uint8_t>{1, 2, 255}[random() % 3] : 0;
  const Stream stream = stream_of(7, step, 3, Purpose::kPosition);
  const Rewired want = on_processor(layer, dropped, k, stream);
  Rewired got;
  Status status;
  ASSERT_NO_FATAL_FAILURE(rewire_on_device(layer, dropped, k, stream, &got, &status));
  ASSERT_EQ(status.code, kClear);
  ASSERT_EQ(got.left, want.left);
  ASSERT_EQ(got.removed, want.removed);
  ASSERT_EQ(got.keys, want.keys);
  ASSERT_EQ(got.layer, want.layer);
  ASSERT_EQ(got.source, want.source);
  ASSERT_NO_FATAL_FAILURE(check_transpose(got.layer));
  layer = got.layer;
}

TEST(Rewire, A1000TimesGivesTheEdgesOfTheProcessor) {
  Random random(3);
  std::uint64_t step = 0;
  for (int round = 0; round < (kSanitized ? 10 : 100); ++round) {
    cuda_on_host::set_order(round);
    const i64 rows = round % 9 == 0 ? 1 : 1 + static_cast<i64>(random() % 40);
    const i64 cols = round % 9 == 1 ? 1 : 1 + static_cast<i64>(random() % 40);
    const i64 all = rows * cols;
    const bool few_columns = round % 5 == 2 && cols > 2;
    const i64 nnz = few_columns      ? static_cast<i64>(random() % (rows * ((cols + 2) / 3)))
                    : round % 5 == 0 ? all
                    : round % 5 == 1 ? all - static_cast<i64>(random() % std::min<i64>(all + 1, 3))
                                     : static_cast<i64>(random() % (all + 1));
    Layer layer = random_layer(random, rows, cols, nnz, few_columns);
    for (int again = 0; again < 10; ++again) {
      const i64 k = again == 3 ? 0 : again == 7 ? nnz : static_cast<i64>(random() % (nnz + 1));
      if (random() % 2 == 0) {
        ASSERT_NO_FATAL_FAILURE(check_one_rewiring<float>(random, layer, k, ++step)) << rows << " x " << cols;
      } else {
        ASSERT_NO_FATAL_FAILURE(check_one_rewiring<double>(random, layer, k, ++step)) << rows << " x " << cols;
      }
    }
  }
}

TEST(Rewire, CountsPositionsInSixtyFourBits) {
  Random random(4);
  for (const auto& [rows, cols] : {std::pair<i64, i64>{70000, 70000}, {70000, 3}, {3, 70000}}) {
    Layer layer = random_layer(random, rows, cols, 4000);
    for (std::uint64_t step = 1; step <= 3; ++step) {
      ASSERT_NO_FATAL_FAILURE(check_one_rewiring<float>(random, layer, 600, step)) << rows << " x " << cols;
    }
  }
}

TEST(Rewire, ManyTilesAndLongColumns) {
  Random random(5);
  Layer layer = random_layer(random, 30000, 2, 20000);
  for (std::uint64_t step = 1; step <= 3; ++step) {
    ASSERT_NO_FATAL_FAILURE(check_one_rewiring<float>(random, layer, 3000, step));
  }
}

// Faults.

Layer small() { return layer_of(4, 3, {0, 2, 5, 11}); }
const std::vector<std::uint8_t> kEnds{1, 0, 0, 2};

void check_excise_fault(i64 k) {
  const Layer layer = small();
  const OnDevice from(layer);
  const Memory<std::uint8_t> dropped(kEnds);
  const Memory<i32> ccol_left(4), row_left(4 - k), removed(k);
  const Memory<std::byte> workspace(static_cast<i64>(cuda::excise_workspace(4)));
  Status status;
  EXPECT_RUN(cuda::excise(dropping(layer, from.ccol, from.row, dropped), k, ccol_left.data(), row_left.data(),
                          removed.data(), &status, workspace.data(), nullptr));
  EXPECT_EQ(status.code, code_of(Fault::kDropped, 0));
  EXPECT_EQ(status.detail[0], k);
  EXPECT_EQ(status.detail[1], 2);
  // The first k, then.
  std::vector<i32> first(k);
  std::iota(first.begin(), first.end(), 0);
  EXPECT_EQ(removed.read(), first);
  EXPECT_EQ(row_left.read(), std::vector<i32>(layer.row.begin() + k, layer.row.end()));
  EXPECT_EQ(check_pattern(ccol_left.data(), 3, row_left.data(), 4 - k, 4).fault, PatternFault::kNone);
}

TEST(Faults, AnotherNumberOfDroppedConnectionsThanAsked) {
  for (const i64 k : {0, 1, 3, 4}) ASSERT_NO_FATAL_FAILURE(check_excise_fault(k)) << k;
}

void check_key_fault(const std::vector<i64>& wrong, i64 code, std::vector<i64> detail, Status status = {}) {
  const Layer layer = small();
  const OnDevice from(layer);
  const Memory<std::uint8_t> dropped(kEnds);
  const Memory<i64> keys(wrong);
  const Memory<i32> ccol(4), row(4), source(4);
  const Memory<std::byte> workspace(static_cast<i64>(cuda::replace_connections_workspace(4)));
  EXPECT_RUN(cuda::replace_connections(dropping(layer, from.ccol, from.row, dropped), keys.data(), keys.count,
                                       ccol.data(), row.data(), source.data(), &status, workspace.data(), nullptr));
  EXPECT_EQ(status.code, code);
  EXPECT_EQ(std::vector<i64>(status.detail, status.detail + 3), detail);
  EXPECT_EQ(ccol.read(), layer.ccol);
  EXPECT_EQ(row.read(), layer.row);
  EXPECT_EQ(source.read(), (std::vector<i32>{0, 1, 2, 3}));
}

TEST(Faults, WrongKeysChangeNothing) {
  check_key_fault({7}, code_of(Fault::kCount, 0), {2, 1, 0});
  check_key_fault({}, code_of(Fault::kCount, 0), {2, 0, 0});
  check_key_fault({6, 7, 8, 9, 10}, code_of(Fault::kCount, 0), {2, 5, 0});
  check_key_fault({0, 12}, code_of(Fault::kKey, 1), {12, 0, 12});
  check_key_fault({-3, 12}, code_of(Fault::kKey, 0), {-3, -1, 12});
  check_key_fault({7, 1}, code_of(Fault::kKey, 1), {1, 7, 12});
  check_key_fault({5, 5}, code_of(Fault::kKey, 1), {5, 5, 12});
  check_key_fault({3, 5}, code_of(Fault::kOccupied, 1), {5, 4, 0});
  check_key_fault({2, 5}, code_of(Fault::kOccupied, 0), {2, 4, 0});
  check_key_fault({std::numeric_limits<i64>::min(), std::numeric_limits<i64>::max()}, code_of(Fault::kKey, 0),
                  {std::numeric_limits<i64>::min(), -1, 12});
  // What was there before is told first.
  check_key_fault({7}, code_of(Fault::kNan, 5), {1, 2, 3}, {code_of(Fault::kNan, 5), {1, 2, 3}});
}

TEST(Faults, ALesserCodeStays) {
  Status status{code_of(Fault::kNan, 1), {}};
  const Memory<float> score(std::vector<float>{1, 2, std::nanf("")});
  const Memory<std::uint8_t> chosen(3);
  const Memory<std::byte> workspace(static_cast<i64>(cuda::weakest_workspace<float>(3)));
  EXPECT_RUN(cuda::weakest(score.data(), 3, 0, chosen.data(), &status, workspace.data(), nullptr));
  EXPECT_EQ(status.code, code_of(Fault::kNan, 1));
  EXPECT_EQ(chosen.read(), (std::vector<std::uint8_t>{0, 0, 0}));
}

// Values.

template <class T>
void check_normal() {
  for (const i64 n : {0, 1, 2, 3, 512, 513, 1001}) {
    const Stream stream = stream_of(11, 12, 13, Purpose::kValue);
    const Memory<T> values(n);
    EXPECT_RUN(cuda::counter_normal(stream, n, values.data(), nullptr));
    for (i64 i = 0; i < n; ++i) {
      const NormalPair pair = normal_pair(stream, i / 2);
      ASSERT_EQ(values.data()[i], static_cast<T>(i % 2 == 0 ? pair.first : pair.second)) << i << " of " << n;
    }
  }
}

TEST(Normal, IsThatOfTheProcessor) {
  check_normal<float>();
  check_normal<double>();
}

template <class Word>
void check_carry(Random& random, i64 n, bool fill_each, Status* status) {
  std::vector<i32> source(n);
  i64 fresh = 0;
  for (auto& from : source) from = random() % 3 == 0 ? (++fresh, -1) : static_cast<i32>(random() % n);
  std::vector<Word> old(n), fill(fill_each ? fresh : 1), want(n);
  const auto draw = [&](std::vector<Word>& words) {
    for (Word& word : words) {
      for (std::size_t b = 0; b < sizeof(Word); ++b) reinterpret_cast<std::uint8_t*>(&word)[b] = random() % 256;
    }
  };
  draw(old);
  draw(fill);
  carry(old.data(), source.data(), n, fill.data(), fill_each ? 1 : 0, want.data());
  const bool wrong = status != nullptr && status->code != kClear;
  if (wrong) want = old;
  const Memory<Word> values(old), fills(fill), result(n);
  const Memory<i32> sources(source);
  const Memory<std::byte> workspace(static_cast<i64>(cuda::carry_workspace(n, fill_each)));
  EXPECT_RUN(cuda::carry(values.data(), sources.data(), n, fills.data(), fill_each, sizeof(Word), result.data(), status,
                         workspace.data(), nullptr));
  ASSERT_EQ(n == 0 ? 0 : std::memcmp(result.data(), want.data(), n * sizeof(Word)), 0) << sizeof(Word);

  unsigned long long found[2] = {9, 9};
  EXPECT_RUN(cuda::check_source(sources.data(), n, found, nullptr));
  ASSERT_EQ(found[0], 0U);
  ASSERT_EQ(found[1], static_cast<unsigned long long>(fresh));
  if (n > 0) {
    for (const i32 bad : {-2, static_cast<i32>(n), std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max()}) {
      sources.data()[random() % n] = bad;
      EXPECT_RUN(cuda::check_source(sources.data(), n, found, nullptr));
      ASSERT_EQ(found[0], 1U) << bad;
    }
  }

  const Memory<Word> target(old), others(want);
  Status clear;
  EXPECT_RUN(cuda::assign(target.data(), others.data(), n, sizeof(Word), status == nullptr ? &clear : status, nullptr));
  ASSERT_EQ(n == 0 ? 0 : std::memcmp(target.data(), want.data(), n * sizeof(Word)), 0);
}

TEST(Carry, FollowsTheSource) {
  struct alignas(16) Sixteen {
    std::uint64_t words[2];
  };
  Random random(6);
  Status clear, wrong{code_of(Fault::kCount, 0), {}};
  for (Status* status : {static_cast<Status*>(nullptr), &clear, &wrong}) {
    for (const bool fill_each : {false, true}) {
      for (const i64 n : {0, 1, 257, 1030}) {
        check_carry<std::uint8_t>(random, n, fill_each, status);
        check_carry<std::uint16_t>(random, n, fill_each, status);
        check_carry<std::uint32_t>(random, n, fill_each, status);
        check_carry<std::uint64_t>(random, n, fill_each, status);
        check_carry<Sixteen>(random, n, fill_each, status);
      }
    }
  }
}

// Patterns.

TEST(CheckPattern, FindsWhatTheProcessorFinds) {
  Random random(7);
  int unsound = 0;
  for (int round = 0; round < 1500; ++round) {
    const i64 rows = 1 + random() % 6, cols = random() % 6, all = rows * cols;
    Layer layer = random_layer(random, rows, std::max<i64>(cols, 1), cols == 0 ? 0 : random() % (all + 1));
    const std::vector<i32> values{
        -1, 0, 1, 2, 3, 5, 6, 7, 100, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max()};
    for (unsigned changes = random() % 3; changes > 0; --changes) {
      auto& array = random() % 2 == 0 || layer.row.empty() ? layer.ccol : layer.row;
      array[random() % array.size()] = values[random() % values.size()];
    }
    const auto segments = static_cast<i64>(layer.ccol.size()) - 1;
    const bool want =
        check_pattern(layer.ccol.data(), segments, layer.row.data(), layer.nnz(), rows).fault == PatternFault::kNone;
    const OnDevice from(layer);
    unsigned long long found[2] = {9, 9};
    EXPECT_RUN(cuda::check_pattern(from.ccol.data(), segments, from.row.data(), layer.nnz(), rows, found, nullptr));
    ASSERT_EQ(found[0] == 0 && found[1] == 0, want) << round;
    unsound += want ? 0 : 1;
  }
  EXPECT_GT(unsound, 300);
  EXPECT_LT(unsound, 1400);
}

TEST(TransposePattern, OfEmptyAndOneColumnPatterns) {
  Random random(8);
  check_transpose(layer_of(5, 4, {}));
  check_transpose(layer_of(1, 1, {0}));
  check_transpose(random_layer(random, 2000, 1, 700));
  check_transpose(random_layer(random, 1, 2000, 700));
  check_transpose(random_layer(random, 65537, 9, 3000));
}

// CUB counts in 32 bits: more is refused before anything is launched, not cut down to what is left of it.
TEST(Sorting, RefusesMoreThanItCanCount) {
  for (const i64 count : {cuda::kMaxSorted + 1, i64{1} << 32, (i64{1} << 32) + 5, i64{-1}}) {
    std::size_t bytes = 0;
    EXPECT_EQ(cuda::sort_keys_workspace(count, 40, &bytes), cudaErrorInvalidValue) << count;
    EXPECT_EQ(cuda::sort_pairs_workspace(count, 31, &bytes), cudaErrorInvalidValue) << count;
    EXPECT_EQ(cuda::sort_keys(nullptr, nullptr, count, 40, nullptr, 0, nullptr), cudaErrorInvalidValue) << count;
    EXPECT_EQ(cuda::sort_pairs(nullptr, nullptr, nullptr, nullptr, count, 31, nullptr, 0, nullptr),
              cudaErrorInvalidValue)
        << count;
  }
  std::size_t bytes = 0;
  const i64 empty = i64{1} << 40, k = i64{1} << 32;
  EXPECT_EQ(cuda::empty_positions_workspace(empty, k, &bytes), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::empty_positions_workspace(empty, 1000, &bytes), cudaSuccess);
}

// What somebody else left as CUDA's last error is not reported as a failure of ours.
TEST(Sorting, ReportsNoErrorsOfOthers) {
  const auto leave_one = [] {
    ASSERT_NE(cuda_on_host::launch(+[] {}, dim3(1, 1u << 20), 1, 0, nullptr), cudaSuccess);
    ASSERT_NE(cudaPeekAtLastError(), cudaSuccess);
  };
  std::size_t bytes = 0;
  leave_one();
  EXPECT_EQ(cuda::sort_keys_workspace(3, 40, &bytes), cudaSuccess);
  const Memory<std::byte> workspace(static_cast<i64>(bytes));
  const Memory<std::uint64_t> keys(std::vector<std::uint64_t>{7, 1, 5}), sorted(3);
  leave_one();
  EXPECT_EQ(cuda::sort_keys(keys.data(), sorted.data(), 3, 40, workspace.data(), bytes, nullptr), cudaSuccess);
  EXPECT_EQ(sorted.read(), (std::vector<std::uint64_t>{1, 5, 7}));
  leave_one();
  EXPECT_EQ(cuda::sort_pairs_workspace(3, 31, &bytes), cudaSuccess);
  const Memory<std::uint32_t> rows(std::vector<std::uint32_t>{2, 0, 2}), sorted_rows(3);
  const Memory<i32> places(std::vector<i32>{0, 1, 2}), sorted_places(3);
  const Memory<std::byte> more(static_cast<i64>(bytes));
  leave_one();
  EXPECT_EQ(cuda::sort_pairs(rows.data(), sorted_rows.data(), places.data(), sorted_places.data(), 3, 31, more.data(),
                             bytes, nullptr),
            cudaSuccess);
  EXPECT_EQ(sorted_places.read(), (std::vector<i32>{1, 0, 2}));
}

}  // namespace
}  // namespace dendnorm
