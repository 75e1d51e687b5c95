// Rewiring: which connections go, which come, and how values follow them.
//
// A connection's key is column * rows + row: ascending keys are column order.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/macros.h"

namespace dendnorm {

template <class T>
using OrderOf = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

// An unsigned number that orders as the value does, with -0 = 0. Made of the bits: rounding and flush-to-zero modes
// have no say in it.
template <class T>
DENDNORM_HD inline OrderOf<T> order_of(T value) {
  constexpr OrderOf<T> kSign = OrderOf<T>{1} << (8 * sizeof(T) - 1);
  OrderOf<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & ~kSign) == 0) bits = 0;
  return (bits & kSign) != 0 ? static_cast<OrderOf<T>>(~bits) : static_cast<OrderOf<T>>(bits | kSign);
}

// By the bits, too: a compiler may assume that no number is NaN.
template <class T>
DENDNORM_HD inline bool is_nan(T value) {
  constexpr OrderOf<T> kInfinity = sizeof(T) == 8 ? static_cast<OrderOf<T>>(0x7FF0000000000000ull) : 0x7F800000u;
  constexpr OrderOf<T> kSign = OrderOf<T>{1} << (8 * sizeof(T) - 1);
  OrderOf<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits & ~kSign) > kInfinity;
}

// The k smallest are those below `threshold` and the first `ties` of those that equal it.
template <class T>
struct Selection {
  OrderOf<T> threshold = 0;
  std::int64_t ties = 0;
};

// 1 <= k <= n. Finds the k-th smallest from its leading bits on, 11 at a time: O(n), whatever the values.
template <class T>
Selection<T> select_smallest(const T* score, std::int64_t n, std::int64_t k) {
  constexpr int kDigit = 11, kWidth = 8 * sizeof(T);
  Selection<T> found{0, k};
  OrderOf<T> known = 0;  // mask of the bits that are settled
  for (int top = kWidth; top > 0; top -= kDigit) {
    const int shift = top > kDigit ? top - kDigit : 0;
    const auto mask = static_cast<OrderOf<T>>((OrderOf<T>{1} << (top - shift)) - 1);
    std::array<std::int64_t, 1 << kDigit> count{};
    for (std::int64_t i = 0; i < n; ++i) {
      const OrderOf<T> order = order_of(score[i]);
      if ((order & known) == found.threshold) ++count[(order >> shift) & mask];
    }
    OrderOf<T> digit = 0;
    while (found.ties > count[digit]) found.ties -= count[digit++];
    found.threshold |= digit << shift;
    known |= mask << shift;
  }
  return found;
}

// chosen[i] says whether score[i] is one of the k smallest; of equals, the earlier goes first.
template <class T>
void mark_smallest(const T* score, std::int64_t n, std::int64_t k, bool* chosen) {
  Selection<T> selection{0, 0};
  if (k > 0) selection = select_smallest(score, n, k);
  for (std::int64_t i = 0; i < n; ++i) {
    const OrderOf<T> order = order_of(score[i]);
    chosen[i] = order < selection.threshold || (order == selection.threshold && selection.ties-- > 0);
  }
}

// Compacts a pattern in column order to the connections that are not dropped; removed[i] is the position of the i-th
// that is. As many as removed and row_left have room for are dropped.
inline void excise(const std::int32_t* ccol_indices, const std::int32_t* row_indices, std::int64_t cols,
                   const std::uint8_t* dropped, std::int32_t* ccol_left, std::int32_t* row_left,
                   std::int32_t* removed) {
  std::int32_t left = 0, gone = 0;
  ccol_left[0] = 0;
  for (std::int64_t column = 0; column < cols; ++column) {
    for (std::int32_t k = ccol_indices[column]; k < ccol_indices[column + 1]; ++k) {
      if (dropped[k] != 0) {
        removed[gone++] = k;
      } else {
        row_left[left++] = row_indices[k];
      }
    }
    ccol_left[column + 1] = left;
  }
}

// The key of the index-th empty position of a sound pattern in column order. The empty positions before column c, and
// within it those before its j-th connection, are known without a list, so two binary searches find it.
DENDNORM_HD inline std::int64_t empty_key(std::int64_t index, const std::int32_t* ccol_indices,
                                          const std::int32_t* row_indices, std::int64_t rows, std::int64_t cols) {
  std::int64_t low = 0, high = cols - 1;  // the last column with at most `index` empty positions before it
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (middle * rows - ccol_indices[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const std::int64_t first = ccol_indices[low], column = low;
  const std::int64_t rest = index - (column * rows - first);
  std::int64_t before = 0, end = ccol_indices[column + 1] - first;  // connections that come before it in the column
  while (before < end) {
    const std::int64_t middle = (before + end) / 2;
    if (row_indices[first + middle] - middle <= rest) {
      before = middle + 1;
    } else {
      end = middle;
    }
  }
  return column * rows + rest + before;
}

// Numbers of empty positions, ascending, become their keys, in place: one walk over the connections.
inline void empty_keys(std::int64_t* numbers, std::int64_t count, const std::int32_t* ccol_indices,
                       const std::int32_t* row_indices, std::int64_t rows) {
  std::int64_t column = 0, before = 0;  // connections that come before the position in its column
  for (std::int64_t i = 0; i < count; ++i) {
    while ((column + 1) * rows - ccol_indices[column + 1] <= numbers[i]) {
      ++column;
      before = 0;
    }
    const std::int64_t first = ccol_indices[column], end = ccol_indices[column + 1] - first;
    const std::int64_t rest = numbers[i] - (column * rows - first);
    while (before < end && row_indices[first + before] - before <= rest) ++before;
    numbers[i] = column * rows + rest + before;
  }
}

// Sorts numbers below 2^bits, 11 bits at a time from the last ones on; `other` is as long. Returns which has the
// result.
inline std::uint64_t* sort_numbers(std::uint64_t* numbers, std::uint64_t* other, std::int64_t count, int bits) {
  constexpr int kDigit = 11;
  for (int shift = 0; shift < bits; shift += kDigit) {
    std::array<std::int64_t, (1 << kDigit) + 1> start{};
    const auto digit = [&](std::uint64_t number) { return number >> shift & ((1 << kDigit) - 1); };
    for (std::int64_t i = 0; i < count; ++i) ++start[digit(numbers[i]) + 1];
    for (std::size_t d = 1; d < start.size(); ++d) start[d] += start[d - 1];
    for (std::int64_t i = 0; i < count; ++i) other[start[digit(numbers[i])]++] = numbers[i];
    std::swap(numbers, other);
  }
  return numbers;
}

// Merges the connections that stay with the new keys, both ascending, into a pattern in column order. source[k] is the
// old position of a connection or -1. As many keys as dropped connections, all in [0, rows * cols).
// Returns -1, or the position of the first key that is occupied; what was written is then of no use.
inline std::int64_t replace_connections(const std::int32_t* ccol_indices, const std::int32_t* row_indices,
                                        std::int64_t rows, std::int64_t cols, const std::uint8_t* dropped,
                                        const std::int64_t* keys, std::int64_t count, std::int32_t* new_ccol_indices,
                                        std::int32_t* new_row_indices, std::int32_t* source) {
  std::int64_t next = 0;
  std::int32_t to = 0;
  new_ccol_indices[0] = 0;
  for (std::int64_t column = 0; column < cols; ++column) {
    const std::int64_t base = column * rows;
    const auto grow_until = [&](std::int64_t limit) {
      for (; next < count && keys[next] < limit; ++next, ++to) {
        new_row_indices[to] = static_cast<std::int32_t>(keys[next] - base);
        source[to] = -1;
      }
    };
    for (std::int32_t k = ccol_indices[column]; k < ccol_indices[column + 1]; ++k) {
      if (dropped[k] != 0) continue;
      grow_until(base + row_indices[k]);
      if (next < count && keys[next] == base + row_indices[k]) return next;
      new_row_indices[to] = row_indices[k];
      source[to++] = k;
    }
    grow_until(base + rows);
    new_ccol_indices[column + 1] = to;
  }
  return -1;
}

// Whether the connections that stay keep their order, as a rewiring leaves them.
inline bool keeps_order(const std::int32_t* source, std::int64_t n) {
  std::int32_t last = -1;
  for (std::int64_t k = 0; k < n; ++k) {
    if (source[k] < 0) continue;
    if (source[k] <= last) return false;
    last = source[k];
  }
  return true;
}

// carry() in place and without memory, where the order is kept: what moves down goes first, from the lowest place, then
// what moves up, from the highest. Neither writes over what the other is yet to read, for then two would change places.
template <class T>
void carry_in_order(T* values, const std::int32_t* source, std::int64_t n, const T* fill, std::int64_t stride) {
  for (std::int64_t k = 0; k < n; ++k) {
    if (source[k] > k) values[k] = values[source[k]];
  }
  for (std::int64_t k = n; k-- > 0;) {
    if (source[k] >= 0 && source[k] < k) values[k] = values[source[k]];
  }
  for (std::int64_t k = 0; k < n; ++k) {
    if (source[k] >= 0) continue;
    values[k] = *fill;
    fill += stride;
  }
}

// result[k] is the old value that stayed, or the next of `fill` (always its first where `stride` is 0).
template <class T>
void carry(const T* values, const std::int32_t* source, std::int64_t n, const T* fill, std::int64_t stride, T* result) {
  for (std::int64_t k = 0; k < n; ++k) {
    if (source[k] >= 0) {
      result[k] = values[source[k]];
    } else {
      result[k] = *fill;
      fill += stride;
    }
  }
}

}  // namespace dendnorm
