// Rewiring: which connections go, which come, and how values follow them.
//
// A connection's key is column * rows + row: ascending keys are column order.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/platform.h"

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

// 1 <= k <= n. Finds the k-th smallest from its leading bits on, 11 at a time, each time among those that share the
// bits before: O(n), whatever the values.
template <class T>
Selection<T> select_smallest(const T* score, std::int64_t n, std::int64_t k) {
  using Order = OrderOf<T>;
  constexpr int kDigit = 11, kWidth = 8 * sizeof(T);
  Selection<T> found{0, k};
  // Values lie close: with one counter for a digit each step would wait for the one before.
  constexpr int kCounters = 4;
  std::uint32_t count[1 << kDigit][kCounters];
  const auto settle = [&](std::int64_t among, int shift, Order mask, const auto& order) {
    std::memset(count, 0, sizeof count);
    for (std::int64_t i = 0; i < among; ++i) ++count[(order(i) >> shift) & mask][i % kCounters];
    const auto counted = [&](Order digit) {
      std::int64_t sum = 0;
      for (const std::uint32_t part : count[digit]) sum += part;
      return sum;
    };
    Order digit = 0;
    std::int64_t here = counted(0);
    while (found.ties > here) {
      found.ties -= here;
      here = counted(++digit);
    }
    found.threshold |= digit << shift;
    return here;
  };
  // Those that share the bits from `shift` on, into `to`; there are `room` of them.
  const auto gather = [&](std::int64_t among, int shift, const auto& order, Order* to, std::int64_t room) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < among && kept < room; ++i) {
      to[kept] = order(i);
      kept += order(i) >> shift == found.threshold >> shift;
    }
  };
  const auto of_score = [score](std::int64_t i) { return order_of(score[i]); };
  int shift = kWidth - kDigit;
  std::int64_t left = settle(n, shift, (Order{1} << kDigit) - 1, of_score);
  const auto orders = std::make_unique_for_overwrite<Order[]>(left);
  gather(n, shift, of_score, orders.get(), left);
  const auto of_left = [&](std::int64_t i) { return orders[i]; };
  while (shift > 0) {
    const int top = shift;
    shift = std::max(0, top - kDigit);
    const std::int64_t among = left;
    left = settle(among, shift, static_cast<Order>((Order{1} << (top - shift)) - 1), of_left);
    if (shift > 0) gather(among, shift, of_left, orders.get(), left);
  }
  return found;
}

// chosen[i] says whether score[i] is one of the k smallest; of equals, the earlier goes first.
template <class T>
void mark_smallest(const T* score, std::int64_t n, std::int64_t k, bool* chosen) {
  Selection<T> selection{0, 0};
  if (k > 0) selection = select_smallest(score, n, k);
  for (std::int64_t i = 0; i < n; ++i) chosen[i] = order_of(score[i]) < selection.threshold;
  for (std::int64_t i = 0; selection.ties > 0; ++i) {
    const bool tie = order_of(score[i]) == selection.threshold;
    chosen[i] |= tie;
    selection.ties -= tie;
  }
}

// Columns [begin, end) of a pattern, and how many connections before them are dropped: what may be rewired apart.
struct Columns {
  std::int64_t begin, end, dropped_before;
};

// The columns in so many parts of about equal numbers of connections.
inline std::vector<Columns> columns_in_parts(const std::int32_t* ccol_indices, std::int64_t cols,
                                             const std::uint8_t* dropped, std::int64_t parts) {
  std::vector<Columns> result(parts);
  std::int64_t begin = 0, gone = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t until = ccol_indices[cols] * (part + 1) / parts;
    const std::int64_t end =
        part + 1 < parts ? std::lower_bound(ccol_indices + begin, ccol_indices + cols, until) - ccol_indices : cols;
    result[part] = {begin, end, gone};
    const std::int64_t first = ccol_indices[begin], last = ccol_indices[end];
    gone += last - first - std::count(dropped + first, dropped + last, std::uint8_t{0});
    begin = end;
  }
  return result;
}

// Compacts a pattern in column order to the connections that are not dropped; removed[i] is the position of the i-th
// that is.
inline void excise(const std::int32_t* ccol_indices, const std::int32_t* row_indices, Columns columns,
                   const std::uint8_t* dropped, std::int32_t* ccol_left, std::int32_t* row_left,
                   std::int32_t* removed) {
  // Which way an entry goes cannot be foretold: both are written, and one is then written over.
  constexpr std::int32_t kBlock = 256;
  std::int32_t stays[kBlock], goes[kBlock];
  std::int64_t gone = columns.dropped_before, left = ccol_indices[columns.begin] - gone;
  if (columns.begin == 0) ccol_left[0] = 0;
  for (std::int64_t column = columns.begin; column < columns.end; ++column) {
    const std::int32_t last = ccol_indices[column + 1];
    for (std::int32_t k = ccol_indices[column]; k < last;) {
      const std::int32_t until = std::min(last, k + std::min(kBlock, last - k));
      std::int32_t staying = 0, going = 0;
      for (; k < until; ++k) {
        const bool goes_now = dropped[k] != 0;
        stays[staying] = row_indices[k];
        goes[going] = k;
        staying += !goes_now;
        going += goes_now;
      }
      std::copy_n(stays, staying, row_left + left);
      std::copy_n(goes, going, removed + gone);
      left += staying;
      gone += going;
    }
    ccol_left[column + 1] = static_cast<std::int32_t>(left);
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

// Numbers of empty positions, ascending, become their keys, in place: one walk over the connections from the first
// one's column on.
inline void empty_keys(std::int64_t* numbers, std::int64_t count, const std::int32_t* ccol_indices,
                       const std::int32_t* row_indices, std::int64_t rows, std::int64_t cols) {
  if (count == 0) return;
  std::int64_t column = empty_key(numbers[0], ccol_indices, row_indices, rows, cols) / rows;
  std::int64_t before = 0;  // connections that come before the position in its column
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
// Returns -1, or the position of the first key in these columns that is occupied; what was written is then of no use.
inline std::int64_t replace_connections(const std::int32_t* ccol_indices, const std::int32_t* row_indices,
                                        std::int64_t rows, Columns columns, const std::uint8_t* dropped,
                                        const std::int64_t* keys, std::int64_t count, std::int32_t* new_ccol_indices,
                                        std::int32_t* new_row_indices, std::int32_t* source) {
  std::int64_t next = std::lower_bound(keys, keys + count, columns.begin * rows) - keys;
  auto to = static_cast<std::int32_t>(ccol_indices[columns.begin] - columns.dropped_before + next);
  if (columns.begin == 0) new_ccol_indices[0] = 0;
  for (std::int64_t column = columns.begin; column < columns.end; ++column) {
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
  constexpr std::int64_t kBlock = 256;
  std::int64_t fresh[kBlock];
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min(n, begin + kBlock);
    std::int64_t count = 0;
    for (std::int64_t k = begin; k < end; ++k) {
      result[k] = values[std::max(source[k], 0)];
      fresh[count] = k;
      count += source[k] < 0;
    }
    for (std::int64_t i = 0; i < count; ++i, fill += stride) result[fresh[i]] = *fill;
  }
}

}  // namespace dendnorm
