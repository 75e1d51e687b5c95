// Compressed sparse patterns (CSR and CSC alike): what makes one sound, and its other view.
//
// `compressed` (segments + 1,) tells where each segment's `indices` begin; indices are in [0, size).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/platform.h"

namespace dendnorm {

constexpr std::int64_t kMaxIndex = 0x7FFFFFFF;

enum class PatternFault {
  kNone,
  kStart,    // compressed[0] is not 0
  kFalling,  // compressed[position] is below its predecessor
  kEnd,      // compressed[segments] is not nnz
  kRange,    // indices[position] is not in [0, size)
  kOrder,    // indices[position] is not above its predecessor in the segment
};

// The rule for compressed[j]. When it holds for every j, all pointers are in [0, nnz].
DENDNORM_HD inline PatternFault pointer_fault(const std::int32_t* compressed, std::int64_t j, std::int64_t segments,
                                              std::int64_t nnz) {
  if (j == 0 && compressed[0] != 0) return PatternFault::kStart;
  if (j > 0 && compressed[j] < compressed[j - 1]) return PatternFault::kFalling;
  if (j == segments && compressed[j] != nnz) return PatternFault::kEnd;
  return PatternFault::kNone;
}

// The rule for indices[k], in a segment that begins at `first`.
DENDNORM_HD inline PatternFault index_fault(const std::int32_t* indices, std::int64_t k, std::int64_t first,
                                            std::int64_t size) {
  if (indices[k] < 0 || indices[k] >= size) return PatternFault::kRange;
  if (k > first && indices[k] <= indices[k - 1]) return PatternFault::kOrder;
  return PatternFault::kNone;
}

struct PatternCheck {
  PatternFault fault = PatternFault::kNone;
  std::int64_t position = 0;
};

// The first fault. Reads no index before all pointers are known to be in range.
inline PatternCheck check_pattern(const std::int32_t* compressed, std::int64_t segments, const std::int32_t* indices,
                                  std::int64_t nnz, std::int64_t size) {
  for (std::int64_t j = 0; j <= segments; ++j) {
    const PatternFault fault = pointer_fault(compressed, j, segments, nnz);
    if (fault != PatternFault::kNone) return {fault, j};
  }
  for (std::int64_t j = 0; j < segments; ++j) {
    for (std::int64_t k = compressed[j]; k < compressed[j + 1]; ++k) {
      const PatternFault fault = index_fault(indices, k, compressed[j], size);
      if (fault != PatternFault::kNone) return {fault, k};
    }
  }
  return {};
}

// Calls body(part) for every part.
struct OneByOne {
  template <class F>
  void operator()(std::int64_t parts, const F& body) const {
    for (std::int64_t part = 0; part < parts; ++part) body(part);
  }
};

// The other view of a sound pattern, by counting: compressed_t (size + 1,), indices_t (nnz,) and perm (nnz,), which
// holds for each entry of the other view its position in this one. `for_each` may run the parts at the same time; the
// result is the same, however many they are.
template <class ForEach = OneByOne>
void transpose_pattern(const std::int32_t* compressed, std::int64_t segments, const std::int32_t* indices,
                       std::int64_t size, std::int32_t* compressed_t, std::int32_t* indices_t, std::int32_t* perm,
                       std::int64_t parts = 1, const ForEach& for_each = {}) {
  const std::int64_t nnz = compressed[segments];
  // How many entries of i a part has; then where the next of them goes.
  std::vector<std::int32_t> next(parts * size);
  const auto first_of = [=](std::int64_t part) {
    return std::lower_bound(compressed, compressed + segments, nnz * part / parts) - compressed;
  };
  for_each(parts, [&](std::int64_t part) {
    std::int32_t* mine = next.data() + part * size;
    const std::int64_t end = compressed[first_of(part + 1)];
    for (std::int64_t k = compressed[first_of(part)]; k < end; ++k) ++mine[indices[k]];
  });
  std::int32_t begin = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    compressed_t[i] = begin;
    for (std::int64_t part = 0; part < parts; ++part) begin += std::exchange(next[part * size + i], begin);
  }
  compressed_t[size] = begin;
  for_each(parts, [&](std::int64_t part) {
    std::int32_t* mine = next.data() + part * size;
    const std::int64_t last = first_of(part + 1);
    for (std::int64_t j = first_of(part); j < last; ++j) {
      for (std::int64_t k = compressed[j]; k < compressed[j + 1]; ++k) {
        const std::int32_t to = mine[indices[k]]++;
        indices_t[to] = static_cast<std::int32_t>(j);
        perm[to] = static_cast<std::int32_t>(k);
      }
    }
  });
}

// Whether two views look like those of one pattern, from four of its entries: enough for a view that is left over from
// other connections, at no cost that could be measured. Reads nothing outside of the views, whatever they hold.
inline bool views_agree(const std::int32_t* ccol_indices, std::int64_t columns, const std::int32_t* row_indices,
                        const std::int32_t* crow_indices, std::int64_t rows, const std::int32_t* col_indices,
                        const std::int32_t* perm, std::int64_t nnz) {
  if (ccol_indices[0] != 0 || ccol_indices[columns] != nnz || crow_indices[0] != 0 || crow_indices[rows] != nnz) {
    return false;
  }
  if (nnz == 0) return true;
  for (const std::int64_t k : {std::int64_t{0}, nnz / 3, 2 * nnz / 3, nnz - 1}) {
    const std::int64_t at = perm[k], col = col_indices[k];
    if (at < 0 || at >= nnz || col < 0 || col >= columns) return false;
    const std::int64_t row = row_indices[at];
    if (row < 0 || row >= rows) return false;
    if (k < crow_indices[row] || k >= crow_indices[row + 1]) return false;
    if (at < ccol_indices[col] || at >= ccol_indices[col + 1]) return false;
  }
  return true;
}

constexpr int kMarks = 8;

// A pattern's mark tells it from others: the bytes, lowest first, of a sum modulo 2^64 over the entries of its column
// view. Every floating type holds them exactly.
//
// What entry k of ccol_indices followed by row_indices adds: splitmix64 of its position and value.
DENDNORM_HD inline std::uint64_t mark_of_entry(const std::int32_t* ccol_indices, std::int64_t pointers,
                                               const std::int32_t* row_indices, std::int64_t k) {
  const bool is_pointer = k < pointers;
  const std::int64_t position = is_pointer ? k : k - pointers;
  const auto value = static_cast<std::uint64_t>(std::int64_t{is_pointer ? ccol_indices[k] : row_indices[position]});
  std::uint64_t z = ((static_cast<std::uint64_t>(position) << 32) | value) + (is_pointer ? 1 : 2);
  z *= 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

DENDNORM_HD inline double mark_byte(std::uint64_t sum, int i) { return static_cast<double>((sum >> (8 * i)) & 0xFF); }

// The sum over entries [begin, end).
inline std::uint64_t mark_of_entries(const std::int32_t* ccol_indices, std::int64_t pointers,
                                     const std::int32_t* row_indices, std::int64_t begin, std::int64_t end) {
  std::uint64_t sum = 0;
  for (std::int64_t k = begin; k < end; ++k) sum += mark_of_entry(ccol_indices, pointers, row_indices, k);
  return sum;
}

inline void write_mark(std::uint64_t sum, double* marks) {
  for (int i = 0; i < kMarks; ++i) marks[i] = mark_byte(sum, i);
}

inline void pattern_mark(const std::int32_t* ccol_indices, std::int64_t pointers, const std::int32_t* row_indices,
                         std::int64_t nnz, double* marks) {
  write_mark(mark_of_entries(ccol_indices, pointers, row_indices, 0, pointers + nnz), marks);
}

}  // namespace dendnorm
