#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/pattern.h"

namespace dendnorm {
namespace {

using Indices = std::vector<std::int32_t>;

std::pair<PatternFault, std::int64_t> check(const Indices& compressed, const Indices& indices, std::int64_t size) {
  const PatternCheck found = check_pattern(compressed.data(), static_cast<std::int64_t>(compressed.size()) - 1,
                                           indices.data(), static_cast<std::int64_t>(indices.size()), size);
  return {found.fault, found.position};
}

using Found = std::pair<PatternFault, std::int64_t>;
const Found kSound{PatternFault::kNone, 0};

TEST(CheckPattern, AcceptsWhatIsSound) {
  EXPECT_EQ(check({0}, {}, 0), kSound);
  EXPECT_EQ(check({0, 0, 0}, {}, 0), kSound);
  EXPECT_EQ(check({0, 0, 0}, {}, 5), kSound);
  EXPECT_EQ(check({0, 2, 2, 5}, {0, 3, 1, 2, 3}, 4), kSound);
  EXPECT_EQ(check({0, 1, 2}, {3, 0}, 4), kSound);  // order counts within a segment only
}

TEST(CheckPattern, NamesTheFirstFault) {
  EXPECT_EQ(check({1, 2}, {0, 1}, 2), (Found{PatternFault::kStart, 0}));
  EXPECT_EQ(check({-1, 2}, {0, 1}, 2), (Found{PatternFault::kStart, 0}));
  EXPECT_EQ(check({0, 2, 1, 2}, {0, 1}, 2), (Found{PatternFault::kFalling, 2}));
  EXPECT_EQ(check({0, 2, 1}, {0}, 2), (Found{PatternFault::kFalling, 2}));
  EXPECT_EQ(check({0, 1}, {0, 1}, 2), (Found{PatternFault::kEnd, 1}));
  EXPECT_EQ(check({0, 3}, {0, 1}, 2), (Found{PatternFault::kEnd, 1}));
  EXPECT_EQ(check({0}, {0}, 2), (Found{PatternFault::kEnd, 0}));
  EXPECT_EQ(check({0, 2}, {0, 2}, 2), (Found{PatternFault::kRange, 1}));
  EXPECT_EQ(check({0, 2}, {-1, 1}, 2), (Found{PatternFault::kRange, 0}));
  EXPECT_EQ(check({0, 1}, {0}, 0), (Found{PatternFault::kRange, 0}));
  EXPECT_EQ(check({0, 3}, {0, 2, 1}, 3), (Found{PatternFault::kOrder, 2}));
  EXPECT_EQ(check({0, 1, 3}, {0, 1, 1}, 3), (Found{PatternFault::kOrder, 2}));
}

TEST(CheckPattern, ReadsNoIndexThroughABadPointer) {
  // Under AddressSanitizer these would be reads far outside.
  EXPECT_EQ(check({0, 2147483647, 2}, {0, 1}, 2).first, PatternFault::kFalling);
  EXPECT_EQ(check({0, -2147483647 - 1, 2}, {0, 1}, 2).first, PatternFault::kFalling);
  EXPECT_EQ(check({0, 2147483647}, {0, 1}, 2).first, PatternFault::kEnd);
}

struct Compressed {
  Indices pointers, indices;
};

Compressed compressed_of(const std::vector<std::vector<bool>>& mask) {
  Compressed result{{0}, {}};
  for (const auto& segment : mask) {
    for (std::size_t i = 0; i < segment.size(); ++i) {
      if (segment[i]) result.indices.push_back(static_cast<std::int32_t>(i));
    }
    result.pointers.push_back(static_cast<std::int32_t>(result.indices.size()));
  }
  return result;
}

TEST(TransposePattern, AgreesWithTheTransposedMask) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const std::size_t segments = random() % 12, size = random() % 12;
    const unsigned density = random() % 5;  // of 4: empty and full ones are among them
    std::vector<std::vector<bool>> mask(segments, std::vector<bool>(size)), turned(size, std::vector<bool>(segments));
    for (std::size_t j = 0; j < segments; ++j) {
      for (std::size_t i = 0; i < size; ++i) turned[i][j] = mask[j][i] = random() % 4 < density;
    }
    const Compressed here = compressed_of(mask), want = compressed_of(turned);
    Indices pointers(size + 1, -7), indices(here.indices.size(), -7), perm(here.indices.size(), -7);
    transpose_pattern(here.pointers.data(), static_cast<std::int64_t>(segments), here.indices.data(),
                      static_cast<std::int64_t>(size), pointers.data(), indices.data(), perm.data(), 1 + random() % 4);
    ASSERT_EQ(pointers, want.pointers);
    ASSERT_EQ(indices, want.indices);
    for (std::size_t i = 0; i < size; ++i) {
      for (auto k = pointers[i]; k < pointers[i + 1]; ++k) {
        ASSERT_EQ(here.indices[perm[k]], static_cast<std::int32_t>(i));
        ASSERT_LE(here.pointers[indices[k]], perm[k]);
        ASSERT_LT(perm[k], here.pointers[indices[k] + 1]);
      }
    }
    std::sort(perm.begin(), perm.end());
    for (std::size_t k = 0; k < perm.size(); ++k) ASSERT_EQ(perm[k], static_cast<std::int32_t>(k));
  }
}

struct Views {
  Indices ccol, row, crow, col, perm;

  bool agree() const {
    return views_agree(ccol.data(), static_cast<std::int64_t>(ccol.size()) - 1, row.data(), crow.data(),
                       static_cast<std::int64_t>(crow.size()) - 1, col.data(), perm.data(),
                       static_cast<std::int64_t>(perm.size()));
  }
};

Views views_of(const std::vector<std::vector<bool>>& columns, std::size_t rows) {
  const Compressed c = compressed_of(columns);
  const std::size_t nnz = c.indices.size();
  Views v{c.pointers, c.indices, Indices(rows + 1), Indices(nnz), Indices(nnz)};
  transpose_pattern(v.ccol.data(), static_cast<std::int64_t>(columns.size()), v.row.data(),
                    static_cast<std::int64_t>(rows), v.crow.data(), v.col.data(), v.perm.data());
  return v;
}

std::vector<std::vector<bool>> drawn_columns(std::mt19937& random, std::size_t columns, std::size_t rows,
                                             std::size_t nnz) {
  std::vector<bool> flat(columns * rows);
  std::fill(flat.begin(), flat.begin() + static_cast<std::ptrdiff_t>(nnz), true);
  std::shuffle(flat.begin(), flat.end(), random);
  std::vector<std::vector<bool>> mask(columns, std::vector<bool>(rows));
  for (std::size_t at = 0; at < flat.size(); ++at) mask[at / rows][at % rows] = flat[at];
  return mask;
}

TEST(ViewsAgree, WhereTheyAreOfOnePattern) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    const std::size_t columns = random() % 9, rows = random() % 9;
    const std::size_t nnz = columns * rows == 0 ? 0 : random() % (columns * rows + 1);
    EXPECT_TRUE(views_of(drawn_columns(random, columns, rows, nnz), rows).agree());
  }
}

TEST(ViewsAgree, NotWhereOneIsLeftOver) {
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 100; ++round) {
    Views now = views_of(drawn_columns(random, 20, 30, 60), 30);
    const Views before = views_of(drawn_columns(random, 20, 30, 60), 30);
    now.crow = before.crow, now.col = before.col, now.perm = before.perm;
    refused += now.agree() ? 0 : 1;
  }
  EXPECT_EQ(refused, 100);
}

TEST(ViewsAgree, ReadsNothingOutsideWhateverTheyHold) {
  std::mt19937 random(4);
  const Views sound = views_of(drawn_columns(random, 5, 6, 12), 6);
  ASSERT_TRUE(sound.agree());
  // Under AddressSanitizer these would be reads far outside.
  for (const std::int32_t wild : {-1, 2147483647, -2147483647 - 1}) {
    for (Indices Views::* part : {&Views::ccol, &Views::row, &Views::crow, &Views::col, &Views::perm}) {
      Views broken = sound;
      std::fill((broken.*part).begin(), (broken.*part).end(), wild);
      EXPECT_FALSE(broken.agree());
    }
  }
}

TEST(PatternMark, ChangesWithEveryEntryAndIsBytes) {
  const auto mark_of = [](const Indices& ccol, const Indices& row) {
    std::vector<double> marks(kMarks);
    pattern_mark(ccol.data(), static_cast<std::int64_t>(ccol.size()), row.data(), static_cast<std::int64_t>(row.size()),
                 marks.data());
    return marks;
  };
  const std::vector<double> mark = mark_of({0, 2, 3}, {0, 2, 1});
  for (const double byte : mark) {
    EXPECT_GE(byte, 0);
    EXPECT_LT(byte, 256);
    EXPECT_EQ(byte, std::floor(byte));
  }
  EXPECT_EQ(mark_of({0, 2, 3}, {0, 2, 1}), mark);
  EXPECT_NE(mark_of({0, 1, 3}, {0, 2, 1}), mark);
  EXPECT_NE(mark_of({0, 2, 3}, {0, 1, 2}), mark);
  EXPECT_NE(mark_of({0, 2, 1}, {0, 2, 3}), mark);
  // splitmix64's own sequence: its state counts up by the constant that multiplies here.
  const Indices zero{0};
  EXPECT_EQ(mark_of_entry(zero.data(), 1, nullptr, 0), 0xE220A8397B1DCDAFULL);
}

}  // namespace
}  // namespace dendnorm
