#include "ops/rewire.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "core/random.h"
#include "core/rewire.h"
#include "ops/parallel.h"
#include "ops/pattern.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

constexpr std::int64_t kGrain = 1024;  // random numbers for one thread

Status* status_of(const OptionalTensor& status) {
  return given(status) ? reinterpret_cast<Status*>(status->mutable_data_ptr<std::int64_t>()) : nullptr;
}

// To the status where the caller gave one; the least code stays.
void report(const OptionalTensor& status, const Status& found) {
  Status* kept = status_of(status);
  if (kept == nullptr) return raise_fault(found);
  if (found.code < kept->code) *kept = found;
}

bool is_clear(const OptionalTensor& status) {
  return !given(status) || *status->const_data_ptr<std::int64_t>() == kClear;
}

// As bytes: a view of other memory as bool may hold more than 0 and 1.
const std::uint8_t* bytes_of(const Tensor& mask) { return static_cast<const std::uint8_t*>(mask.const_data_ptr()); }

Tensor weakest_cpu(const Tensor& score, std::int64_t k, const OptionalTensor& status) {
  Tensor chosen = empty_weakest(score, k, status);
  const Tensor values = score.contiguous();
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "weakest", [&] {
    const scalar_t* begin = values.const_data_ptr<scalar_t>();
    const scalar_t* end = begin + values.numel();
    const scalar_t* nan = std::find_if(begin, end, is_nan<scalar_t>);
    if (nan != end) report(status, {code_of(Fault::kNan, nan - begin), {}});
    mark_smallest(begin, values.numel(), k, chosen.mutable_data_ptr<bool>());
  });
  return chosen;
}

std::tuple<Tensor, Tensor, Tensor> excise_cpu(const Tensor& ccol_indices, const Tensor& row_indices,
                                              const Tensor& dropped, std::int64_t k, bool sound,
                                              const OptionalTensor& status) {
  auto result = empty_excise(ccol_indices, row_indices, dropped, k, status);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous(), mask = dropped.contiguous();
  if (!sound) check_pattern_content("excise", pointers, entries, kAnyRows, {});
  const std::uint8_t* gone = bytes_of(mask);
  const std::int64_t nnz = entries.numel(), count = nnz - std::count(gone, gone + nnz, std::uint8_t{0});
  std::vector<std::uint8_t> others;
  if (count != k) {
    report(status, {code_of(Fault::kDropped, 0), {k, count}});
    others.assign(nnz, 0);
    std::fill_n(others.begin(), k, std::uint8_t{1});
    gone = others.data();
  }
  auto& [ccol_left, row_left, removed] = result;
  const auto* ccol = pointers.const_data_ptr<std::int32_t>();
  const auto* row = entries.const_data_ptr<std::int32_t>();
  const std::vector<Columns> parts = columns_in_parts(ccol, pointers.numel() - 1, gone, parts_of(nnz, kEntries));
  PartsOnThreads{}(static_cast<std::int64_t>(parts.size()), [&](std::int64_t part) {
    excise(ccol, row, parts[part], gone, ccol_left.mutable_data_ptr<std::int32_t>(),
           row_left.mutable_data_ptr<std::int32_t>(), removed.mutable_data_ptr<std::int32_t>());
  });
  return result;
}

// The first `count` numbers of a bijection, in order.
void draw_sorted(std::int64_t* numbers, std::int64_t count, const Bijection& shuffled, int bits) {
  auto* first = reinterpret_cast<std::uint64_t*>(numbers);
  on_threads(count, kGrain,
             [&](std::int64_t begin, std::int64_t end) { shuffled.images_of(begin, first + begin, end - begin); });
  if (count < 2048) {
    std::sort(numbers, numbers + count);
    return;
  }
  const auto other = std::make_unique_for_overwrite<std::uint64_t[]>(count);
  const std::uint64_t* sorted = sort_numbers(first, other.get(), count, bits);
  if (sorted != first) std::copy(sorted, sorted + count, first);
}

Tensor empty_positions_cpu(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                           std::int64_t seed, std::int64_t step, std::int64_t layer, bool sound) {
  Tensor result = empty_positions_result(ccol_indices, row_indices, rows, k, seed, step, layer);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous();
  if (!sound) check_pattern_content("empty_positions", pointers, entries, rows, {});
  const std::int64_t cols = pointers.numel() - 1, empty = rows * cols - entries.numel();
  const auto* ccol = pointers.const_data_ptr<std::int32_t>();
  const auto* row = entries.const_data_ptr<std::int32_t>();
  auto* keys = result.mutable_data_ptr<std::int64_t>();
  if (k < empty) {
    const auto number = static_cast<std::uint32_t>(layer);
    draw_sorted(keys, k,
                Bijection(static_cast<std::uint64_t>(empty), stream_of(seed, step, number, Purpose::kPosition)),
                std::bit_width(static_cast<std::uint64_t>(empty - 1)));
  } else {
    std::iota(keys, keys + k, 0);
  }
  // A walk costs as many steps as there are connections, a search two logarithms for each key.
  const bool walk = k > entries.numel() / 16;
  on_threads(k, kGrain, [&](std::int64_t begin, std::int64_t end) {
    if (walk) return empty_keys(keys + begin, end - begin, ccol, row, rows, cols);
    for (std::int64_t i = begin; i < end; ++i) keys[i] = empty_key(keys[i], ccol, row, rows, cols);
  });
  return result;
}

// What is wrong with the number, range or order of the keys.
Status fault_of_keys(const std::int64_t* keys, std::int64_t count, std::int64_t expected, std::int64_t positions) {
  if (count != expected) return {code_of(Fault::kCount, 0), {expected, count}};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t before = i > 0 ? keys[i - 1] : -1;
    if (keys[i] <= before || keys[i] >= positions) return {code_of(Fault::kKey, i), {keys[i], before, positions}};
  }
  return {};
}

std::tuple<Tensor, Tensor, Tensor> replace_connections_cpu(const Tensor& ccol_indices, const Tensor& row_indices,
                                                           std::int64_t rows, const Tensor& dropped, const Tensor& keys,
                                                           bool sound, const OptionalTensor& status) {
  auto result = empty_replacement(ccol_indices, row_indices, rows, dropped, keys, status);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous();
  if (!sound) check_pattern_content("replace_connections", pointers, entries, rows, {});
  const Tensor mask = dropped.contiguous(), key_values = keys.contiguous();
  const std::uint8_t* gone = bytes_of(mask);
  const auto* key = key_values.const_data_ptr<std::int64_t>();
  const std::int64_t nnz = entries.numel(), count = key_values.numel(), cols = pointers.numel() - 1;
  auto& [new_ccol, new_row, source] = result;
  auto* from = source.mutable_data_ptr<std::int32_t>();
  Status found = fault_of_keys(key, count, nnz - std::count(gone, gone + nnz, std::uint8_t{0}), rows * cols);
  if (found.code == kClear) {
    const auto* ccol = pointers.const_data_ptr<std::int32_t>();
    const std::vector<Columns> parts = columns_in_parts(ccol, cols, gone, parts_of(nnz, kEntries));
    std::vector<std::int64_t> taken(parts.size());
    PartsOnThreads{}(static_cast<std::int64_t>(parts.size()), [&](std::int64_t part) {
      taken[part] = replace_connections(ccol, entries.const_data_ptr<std::int32_t>(), rows, parts[part], gone, key,
                                        count, new_ccol.mutable_data_ptr<std::int32_t>(),
                                        new_row.mutable_data_ptr<std::int32_t>(), from);
    });
    const auto first = std::find_if(taken.begin(), taken.end(), [](std::int64_t position) { return position >= 0; });
    if (first != taken.end()) found = {code_of(Fault::kOccupied, *first), {key[*first], rows}};
  }
  if (found.code != kClear) {
    report(status, found);
    new_ccol.copy_(pointers);  // nothing has changed
    new_row.copy_(entries);
    std::iota(from, from + nnz, 0);
  }
  return result;
}

Tensor counter_normal_cpu(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer,
                          at::ScalarType dtype, at::Device device) {
  Tensor result = empty_normal(n, seed, step, layer, dtype, device);
  const Stream stream = stream_of(seed, step, static_cast<std::uint32_t>(layer), Purpose::kValue);
  AT_DISPATCH_FLOATING_TYPES(dtype, "counter_normal", [&] {
    auto* values = result.mutable_data_ptr<scalar_t>();
    on_threads(n / 2 + n % 2, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const NormalPair pair = normal_pair(stream, static_cast<std::uint64_t>(i));
        values[2 * i] = static_cast<scalar_t>(pair.first);
        if (2 * i + 1 < n) values[2 * i + 1] = static_cast<scalar_t>(pair.second);
      }
    });
  });
  return result;
}

// It takes no tensor that would tell the dispatcher whose kernel to call.
Tensor counter_normal_anywhere(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer,
                               at::ScalarType dtype, at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dendnorm::counter_normal", "")
                             .typed<decltype(counter_normal_anywhere)>();
  const auto key = c10::computeDispatchKey(dtype, at::kStrided, device);
  return op.redispatch(c10::DispatchKeySet(key), n, seed, step, layer, dtype, device);
}

// In place where `values` and `result` are the same.
template <class T>
void carry_words(const Tensor& values, const Tensor& source, const Tensor& fill, Tensor& result) {
  const auto* from = source.const_data_ptr<std::int32_t>();
  const auto* fills = static_cast<const T*>(fill.const_data_ptr());
  const auto* old = static_cast<const T*>(values.const_data_ptr());
  auto* to = static_cast<T*>(result.mutable_data_ptr());
  const std::int64_t n = values.numel(), stride = fill.dim();
  if (values.is_same(result)) return carry_in_order(to, from, n, fills, stride);
  on_threads(n, kEntries, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t before = stride == 0 ? 0 : std::count(from, from + begin, -1);
    carry(old, from + begin, end - begin, fills + before * stride, stride, to + begin);
  });
}

struct Pair64 {
  std::uint64_t word[2];
};

// Memory for a copy; undefined where there is none.
Tensor spare(const Tensor& values) {
  try {
    return at::empty_like(values);
  } catch (const c10::Error&) {
  } catch (const std::bad_alloc&) {
  }
  return {};
}

void carry_cpu(Tensor& values, const Tensor& source, const Tensor& fill, bool sound, const OptionalTensor& status) {
  check_carry(values, source, fill, status);
  const Tensor sources = source.contiguous(), fills = fill.contiguous(), old = values.contiguous();
  if (!sound) check_source(sources, fill);
  if (!is_clear(status)) return;
  Tensor result = spare(old);
  // A rewiring writes when everything is known, and must not run out of memory half-way.
  const bool in_place = !result.defined() && values.is_contiguous() && !values.is_inference() && !values.is_neg() &&
                        !values.is_conj() && keeps_order(sources.const_data_ptr<std::int32_t>(), sources.numel());
  if (!result.defined()) result = in_place ? values : at::empty_like(old);
  // Values are moved, never read: their size is all that matters.
  switch (old.element_size()) {
    case 1: carry_words<std::uint8_t>(old, sources, fills, result); break;
    case 2: carry_words<std::uint16_t>(old, sources, fills, result); break;
    case 4: carry_words<std::uint32_t>(old, sources, fills, result); break;
    case 8: carry_words<std::uint64_t>(old, sources, fills, result); break;
    default: carry_words<Pair64>(old, sources, fills, result);
  }
  if (in_place) {
    values.unsafeGetTensorImpl()->bump_version();  // as a copy does
  } else {
    overwrite(values, result);
  }
}

void assign_cpu(Tensor& values, const Tensor& new_values, const OptionalTensor& status) {
  check_assign(values, new_values, status);
  if (is_clear(status)) overwrite(values, new_values);
}

// What tracing needs: the shapes.

Tensor weakest_meta(const Tensor& score, std::int64_t k, const OptionalTensor& status) {
  return empty_weakest(score, k, status);
}

std::tuple<Tensor, Tensor, Tensor> excise_meta(const Tensor& ccol_indices, const Tensor& row_indices,
                                               const Tensor& dropped, std::int64_t k, bool,
                                               const OptionalTensor& status) {
  return empty_excise(ccol_indices, row_indices, dropped, k, status);
}

Tensor empty_positions_meta(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                            std::int64_t seed, std::int64_t step, std::int64_t layer, bool) {
  return empty_positions_result(ccol_indices, row_indices, rows, k, seed, step, layer);
}

std::tuple<Tensor, Tensor, Tensor> replace_connections_meta(const Tensor& ccol_indices, const Tensor& row_indices,
                                                            std::int64_t rows, const Tensor& dropped,
                                                            const Tensor& keys, bool, const OptionalTensor& status) {
  return empty_replacement(ccol_indices, row_indices, rows, dropped, keys, status);
}

void carry_meta(Tensor& values, const Tensor& source, const Tensor& fill, bool, const OptionalTensor& status) {
  check_carry(values, source, fill, status);
}

void assign_meta(Tensor& values, const Tensor& new_values, const OptionalTensor& status) {
  check_assign(values, new_values, status);
}

void raise_fault_meta(const Tensor&) {}

}  // namespace

void check_source(const Tensor& source, const Tensor& fill) {
  const auto* from = source.const_data_ptr<std::int32_t>();
  const std::int64_t n = source.numel();
  for (std::int64_t k = 0; k < n; ++k) {
    TORCH_CHECK(-1 <= from[k] && from[k] < n, "dendnorm::carry_: source must be in [-1, ", n, "), got ", from[k],
                " at position ", k);
  }
  const std::int64_t fresh = std::count(from, from + n, -1);
  TORCH_CHECK(fill.dim() == 0 || fill.numel() == fresh, "dendnorm::carry_: fill must have shape () or (", fresh,
              ",), one entry for each -1 in source, got ", fill.sizes());
}

void overwrite(Tensor& values, const Tensor& result) {
  const at::AutoDispatchBelowAutograd no_history;
  values.copy_(result);
}

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) {
  m.impl("weakest", weakest_cpu);
  m.impl("excise", excise_cpu);
  m.impl("empty_positions", empty_positions_cpu);
  m.impl("replace_connections", replace_connections_cpu);
  m.impl("counter_normal", counter_normal_cpu);
  m.impl("carry_", carry_cpu);
  m.impl("assign_", assign_cpu);
  m.impl("raise_fault", static_cast<void (*)(const Tensor&)>(raise_fault));
}

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  m.impl("weakest", weakest_meta);
  m.impl("excise", excise_meta);
  m.impl("empty_positions", empty_positions_meta);
  m.impl("replace_connections", replace_connections_meta);
  m.impl("counter_normal", empty_normal);
  m.impl("carry_", carry_meta);
  m.impl("assign_", assign_meta);
  m.impl("raise_fault", raise_fault_meta);
}

TORCH_LIBRARY_IMPL(dendnorm, BackendSelect, m) { m.impl("counter_normal", counter_normal_anywhere); }

}  // namespace dendnorm::ops
