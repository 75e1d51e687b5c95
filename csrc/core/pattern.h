// Compressed sparse patterns (CSR and CSC alike): what makes one sound, and its other view.
//
// `compressed` (segments + 1,) tells where each segment's `indices` begin; indices are in [0, size).
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/macros.h"

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

// The other view of a sound pattern, by counting: compressed_t (size + 1,), indices_t (nnz,) and perm (nnz,), which
// holds for each entry of the other view its position in this one.
inline void transpose_pattern(const std::int32_t* compressed, std::int64_t segments, const std::int32_t* indices,
                              std::int64_t size, std::int32_t* compressed_t, std::int32_t* indices_t,
                              std::int32_t* perm) {
  const std::int64_t nnz = compressed[segments];
  std::fill(compressed_t, compressed_t + size + 1, 0);
  for (std::int64_t k = 0; k < nnz; ++k) ++compressed_t[indices[k] + 1];
  for (std::int64_t i = 0; i < size; ++i) compressed_t[i + 1] += compressed_t[i];
  // compressed_t[i] is where the next entry of i goes, and so in the end where those of i + 1 begin.
  for (std::int64_t j = 0; j < segments; ++j) {
    for (std::int64_t k = compressed[j]; k < compressed[j + 1]; ++k) {
      const std::int32_t to = compressed_t[indices[k]]++;
      indices_t[to] = static_cast<std::int32_t>(j);
      perm[to] = static_cast<std::int32_t>(k);
    }
  }
  for (std::int64_t i = size; i > 0; --i) compressed_t[i] = compressed_t[i - 1];
  compressed_t[0] = 0;
}

}  // namespace dendnorm
