#include "core/rewire.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>

#include "core/random.h"
#include "ops/pattern.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

void check_draw(const char* op, std::int64_t seed, std::int64_t step, std::int64_t layer) {
  TORCH_CHECK(seed >= 0, "dendnorm::", op, ": seed must be in [0, 2^63), got ", seed);
  TORCH_CHECK(step >= 0, "dendnorm::", op, ": step must be in [0, 2^63), got ", step);
  TORCH_CHECK(0 <= layer && layer <= 0xFFFFFFFF, "dendnorm::", op, ": layer must be in [0, 2^32), got ", layer);
}

void check_vector(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 1, "dendnorm::", op, ": ", name, " must be one-dimensional, got shape ",
              tensor.sym_sizes());
}

void check_dtype(const char* op, const char* name, const Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK(tensor.scalar_type() == expected, "dendnorm::", op, ": ", name, " must have dtype ",
              c10::getDtypeNames(expected).first, ", got ", c10::getDtypeNames(tensor.scalar_type()).first);
}

void check_device(const char* op, const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  TORCH_CHECK(tensor.device() == like.device(), "dendnorm::", op, ": ", name, " must be on the device of ", like_name,
              ", ", like.device(), ", got ", tensor.device());
}

// weakest

void check_score(const Tensor& score, std::int64_t k) {
  check_vector("weakest", "score", score);
  TORCH_CHECK(score.scalar_type() == at::kFloat || score.scalar_type() == at::kDouble,
              "dendnorm::weakest: score must have dtype float32 or float64, got ",
              c10::getDtypeNames(score.scalar_type()).first);
  TORCH_CHECK(k >= 0 && score.sym_size(0) >= k, "dendnorm::weakest: k must be in [0, nnz] = [0, ", score.sym_size(0),
              "], got ", k);
}

Tensor weakest_cpu(const Tensor& score, std::int64_t k) {
  check_score(score, k);
  const Tensor values = score.contiguous();
  Tensor chosen = at::empty(score.sizes(), score.options().dtype(at::kBool));
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "weakest", [&] {
    const scalar_t* begin = values.const_data_ptr<scalar_t>();
    const scalar_t* end = begin + values.numel();
    const scalar_t* nan = std::find_if(begin, end, is_nan<scalar_t>);
    TORCH_CHECK(nan == end, "dendnorm::weakest: score must be a number everywhere, got nan at position ", nan - begin);
    mark_smallest(begin, values.numel(), k, chosen.mutable_data_ptr<bool>());
  });
  return chosen;
}

Tensor weakest_meta(const Tensor& score, std::int64_t k) {
  check_score(score, k);
  return at::empty_symint(score.sym_sizes(), score.options().dtype(at::kBool));
}

// empty_positions

void check_empty_positions(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                           std::int64_t seed, std::int64_t step, std::int64_t layer) {
  check_pattern_tensors("empty_positions", ccol_indices, row_indices, rows, "rows", {});
  check_draw("empty_positions", seed, step, layer);
  TORCH_CHECK(k >= 0, "dendnorm::empty_positions: k must be at least 0, got ", k);
}

Tensor empty_positions_cpu(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                           std::int64_t seed, std::int64_t step, std::int64_t layer) {
  check_empty_positions(ccol_indices, row_indices, rows, k, seed, step, layer);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous();
  check_pattern_content("empty_positions", pointers, entries, rows, {});
  const std::int64_t cols = pointers.numel() - 1, empty = rows * cols - entries.numel();
  TORCH_CHECK(k <= empty, "dendnorm::empty_positions: k must be in [0, number of empty positions] = [0, ", empty,
              "], got ", k);
  Tensor result = at::empty({k}, row_indices.options().dtype(at::kLong));
  auto* keys = result.mutable_data_ptr<std::int64_t>();
  std::iota(keys, keys + k, 0);
  if (0 < k && k < empty) {
    const auto number = static_cast<std::uint32_t>(layer);
    const Bijection shuffled(static_cast<std::uint64_t>(empty), stream_of(seed, step, number, Purpose::kPosition));
    for (std::int64_t i = 0; i < k; ++i) keys[i] = static_cast<std::int64_t>(shuffled(i));
    std::sort(keys, keys + k);
  }
  const auto* ccol = pointers.const_data_ptr<std::int32_t>();
  const auto* row = entries.const_data_ptr<std::int32_t>();
  for (std::int64_t i = 0; i < k; ++i) keys[i] = empty_key(keys[i], ccol, row, rows, cols);
  return result;
}

Tensor empty_positions_meta(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                            std::int64_t seed, std::int64_t step, std::int64_t layer) {
  check_empty_positions(ccol_indices, row_indices, rows, k, seed, step, layer);
  return at::empty({k}, row_indices.options().dtype(at::kLong));
}

// replace_connections

void check_replace_connections(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows,
                               const Tensor& dropped, const Tensor& keys) {
  const char* op = "replace_connections";
  check_pattern_tensors(op, ccol_indices, row_indices, rows, "rows", {});
  check_vector(op, "dropped", dropped);
  check_dtype(op, "dropped", dropped, at::kBool);
  check_device(op, "dropped", dropped, "row_indices", row_indices);
  TORCH_CHECK(dropped.sym_size(0) == row_indices.sym_size(0), "dendnorm::", op,
              ": dropped must have one entry for each of the ", row_indices.sym_size(0), " of row_indices, got ",
              dropped.sym_size(0));
  check_vector(op, "keys", keys);
  check_dtype(op, "keys", keys, at::kLong);
  check_device(op, "keys", keys, "row_indices", row_indices);
}

std::tuple<Tensor, Tensor, Tensor> replace_connections_cpu(const Tensor& ccol_indices, const Tensor& row_indices,
                                                           std::int64_t rows, const Tensor& dropped,
                                                           const Tensor& keys) {
  const char* op = "replace_connections";
  check_replace_connections(ccol_indices, row_indices, rows, dropped, keys);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous();
  check_pattern_content(op, pointers, entries, rows, {});
  const Tensor dropped_values = dropped.contiguous(), key_values = keys.contiguous();
  // As bytes: a view of other memory as bool may hold more than 0 and 1.
  const auto* gone = static_cast<const std::uint8_t*>(dropped_values.const_data_ptr());
  const auto* key = key_values.const_data_ptr<std::int64_t>();
  const std::int64_t nnz = entries.numel(), count = key_values.numel(), cols = pointers.numel() - 1;
  const std::int64_t expected = nnz - std::count(gone, gone + nnz, std::uint8_t{0});
  TORCH_CHECK(count == expected, "dendnorm::", op, ": keys must have one entry for each of the ", expected,
              " dropped connections, got ", count);
  for (std::int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(0 <= key[i] && key[i] < rows * cols, "dendnorm::", op, ": keys must be in [0, rows * columns) = [0, ",
                rows * cols, "), got ", key[i], " at position ", i);
    TORCH_CHECK(i == 0 || key[i - 1] < key[i], "dendnorm::", op, ": keys must be strictly ascending, got ", key[i],
                " after ", key[i - 1], " at position ", i);
  }
  Tensor new_ccol = at::empty({cols + 1}, pointers.options()), new_row = at::empty({nnz}, entries.options());
  Tensor source = at::empty({nnz}, entries.options());
  const std::int64_t taken =
      replace_connections(pointers.const_data_ptr<std::int32_t>(), entries.const_data_ptr<std::int32_t>(), rows, cols,
                          gone, key, count, new_ccol.mutable_data_ptr<std::int32_t>(),
                          new_row.mutable_data_ptr<std::int32_t>(), source.mutable_data_ptr<std::int32_t>());
  TORCH_CHECK(taken < 0, "dendnorm::", op,
              ": keys must be empty positions once the dropped ones are, got the connection ", key[taken], " (row ",
              key[taken] % rows, ", column ", key[taken] / rows, ") at position ", taken);
  return {new_ccol, new_row, source};
}

std::tuple<Tensor, Tensor, Tensor> replace_connections_meta(const Tensor& ccol_indices, const Tensor& row_indices,
                                                            std::int64_t rows, const Tensor& dropped,
                                                            const Tensor& keys) {
  check_replace_connections(ccol_indices, row_indices, rows, dropped, keys);
  return {at::empty_symint(ccol_indices.sym_sizes(), ccol_indices.options()),
          at::empty_symint(row_indices.sym_sizes(), row_indices.options()),
          at::empty_symint(row_indices.sym_sizes(), row_indices.options())};
}

// counter_normal

// It takes no tensor, so this one kernel serves every device. The bits are those of the device's own kernel.
Tensor counter_normal(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer, at::ScalarType dtype,
                      at::Device device) {
  TORCH_CHECK(n >= 0, "dendnorm::counter_normal: n must be at least 0, got ", n);
  check_draw("counter_normal", seed, step, layer);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble,
              "dendnorm::counter_normal: dtype must be float32 or float64, got ", c10::getDtypeNames(dtype).first);
  const auto options = at::TensorOptions().dtype(dtype);
  if (device.is_meta()) return at::empty({n}, options.device(device));
  Tensor result = at::empty({n}, options.device(at::kCPU));
  const Stream stream = stream_of(seed, step, static_cast<std::uint32_t>(layer), Purpose::kValue);
  AT_DISPATCH_FLOATING_TYPES(dtype, "counter_normal", [&] {
    auto* values = result.mutable_data_ptr<scalar_t>();
    for (std::int64_t i = 0; i < n; i += 2) {
      const NormalPair pair = normal_pair(stream, static_cast<std::uint64_t>(i) / 2);
      values[i] = static_cast<scalar_t>(pair.first);
      if (i + 1 < n) values[i + 1] = static_cast<scalar_t>(pair.second);
    }
  });
  return device.is_cpu() ? result : result.to(device);
}

// carry_

void check_carry(const Tensor& values, const Tensor& source, const Tensor& fill) {
  check_vector("carry_", "values", values);
  check_vector("carry_", "source", source);
  check_dtype("carry_", "source", source, at::kInt);
  check_device("carry_", "source", source, "values", values);
  TORCH_CHECK(source.sym_size(0) == values.sym_size(0), "dendnorm::carry_: source must have one entry for each of the ",
              values.sym_size(0), " of values, got ", source.sym_size(0));
  TORCH_CHECK(fill.dim() <= 1, "dendnorm::carry_: fill must have shape () or (number of new entries,), got ",
              fill.sym_sizes());
  check_dtype("carry_", "fill", fill, values.scalar_type());
  check_device("carry_", "fill", fill, "values", values);
}

template <class T>
void carry_words(const Tensor& values, const Tensor& source, const Tensor& fill, Tensor& result) {
  carry(static_cast<const T*>(values.const_data_ptr()), source.const_data_ptr<std::int32_t>(), values.numel(),
        static_cast<const T*>(fill.const_data_ptr()), fill.dim(), static_cast<T*>(result.mutable_data_ptr()));
}

struct Pair64 {
  std::uint64_t word[2];
};

void carry_cpu(Tensor& values, const Tensor& source, const Tensor& fill) {
  check_carry(values, source, fill);
  const Tensor sources = source.contiguous(), fills = fill.contiguous(), old = values.contiguous();
  const auto* from = sources.const_data_ptr<std::int32_t>();
  const std::int64_t n = old.numel();
  for (std::int64_t k = 0; k < n; ++k) {
    TORCH_CHECK(-1 <= from[k] && from[k] < n, "dendnorm::carry_: source must be in [-1, ", n, "), got ", from[k],
                " at position ", k);
  }
  const std::int64_t fresh = std::count(from, from + n, -1);
  TORCH_CHECK(fill.dim() == 0 || fill.numel() == fresh, "dendnorm::carry_: fill must have shape () or (", fresh,
              ",), one entry for each -1 in source, got ", fill.sizes());
  Tensor result = at::empty_like(old);
  // Values are moved, never read: their size is all that matters.
  switch (old.element_size()) {
    case 1: carry_words<std::uint8_t>(old, sources, fills, result); break;
    case 2: carry_words<std::uint16_t>(old, sources, fills, result); break;
    case 4: carry_words<std::uint32_t>(old, sources, fills, result); break;
    case 8: carry_words<std::uint64_t>(old, sources, fills, result); break;
    case 16: carry_words<Pair64>(old, sources, fills, result); break;
    default:
      TORCH_CHECK(false, "dendnorm::carry_: values must have a dtype of 1, 2, 4, 8 or 16 bytes, got ",
                  values.scalar_type());
  }
  // copy_ takes any strides and tells autograd that what it may have saved has changed.
  const at::AutoDispatchBelowAutograd no_history;
  values.copy_(result);
}

void carry_meta(Tensor& values, const Tensor& source, const Tensor& fill) { check_carry(values, source, fill); }

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) {
  m.impl("weakest", weakest_cpu);
  m.impl("empty_positions", empty_positions_cpu);
  m.impl("replace_connections", replace_connections_cpu);
  m.impl("carry_", carry_cpu);
}

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  m.impl("weakest", weakest_meta);
  m.impl("empty_positions", empty_positions_meta);
  m.impl("replace_connections", replace_connections_meta);
  m.impl("carry_", carry_meta);
}

TORCH_LIBRARY_IMPL(dendnorm, CompositeExplicitAutograd, m) { m.impl("counter_normal", counter_normal); }

}  // namespace dendnorm::ops
