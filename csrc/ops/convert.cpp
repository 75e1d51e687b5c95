#include "ops/convert.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/pattern.h"
#include "ops/call.h"
#include "ops/require.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

void check_lengths(const Tensor& compressed, const Tensor& indices, std::int64_t segments, PatternNames names) {
  TORCH_CHECK_VALUE(compressed.sym_numel() == segments + 1, names.compressed, " must have ", segments,
                    " + 1 = ", segments + 1, " entries, got ", compressed.sym_numel());
  TORCH_CHECK_VALUE(compressed.device() == indices.device(), names.compressed, " and ", names.indices,
                    " must be on one device, got ", compressed.device(), ", ", indices.device());
}

void check_view_op(const Tensor& compressed, const Tensor& indices, std::int64_t segments, std::int64_t size,
                   std::string_view compressed_name, std::string_view indices_name) {
  check_view(compressed, indices, segments, size, {compressed_name, indices_name});
}

Tensors5 both_views(const Tensor& compressed, const Tensor& indices, std::int64_t segments, std::int64_t size,
                    std::string_view compressed_name, std::string_view indices_name) {
  const Tensor pointers = as_index(compressed_name, compressed), entries = as_index(indices_name, indices);
  check_view(pointers, entries, segments, size, {compressed_name, indices_name});
  auto [others, segment, perm] = transposed(pointers, entries, size);
  return {pointers, entries, others, segment, perm};
}

void check_keys(const Tensor& keys, std::int64_t rows, std::int64_t cols) {
  const char* op = "pattern_of_keys";
  require_dtype(op, "keys", keys, {at::kLong});
  require_one_dimension(op, "keys", keys);
  TORCH_CHECK(0 <= rows && rows < kMaxIndex, "dendnorm::", op, ": rows must be in [0, ", kMaxIndex, "), got ", rows);
  TORCH_CHECK(0 <= cols && cols < kMaxIndex, "dendnorm::", op, ": cols must be in [0, ", kMaxIndex, "), got ", cols);
}

Tensor2 pattern_of_keys(const Tensor& keys, std::int64_t rows, std::int64_t cols) {
  check_keys(keys, rows, cols);
  const Tensor starts = at::arange(cols + 1, keys.options()) * rows;
  return {at::searchsorted(keys, starts).to(at::kInt), keys.remainder(std::max<std::int64_t>(rows, 1)).to(at::kInt)};
}

Tensor2 pattern_of_keys_meta(const Tensor& keys, std::int64_t rows, std::int64_t cols) {
  check_keys(keys, rows, cols);
  const auto options = keys.options().dtype(at::kInt);
  return {at::empty({cols + 1}, options), at::empty_symint(keys.sym_sizes(), options)};
}

void check_dense(const Tensor& dense, std::optional<std::int64_t> nnz) {
  const char* op = "largest_connections";
  TORCH_CHECK(dense.dim() == 2, "dendnorm::", op, ": dense must have two dimensions, got shape ", dense.sym_sizes());
  TORCH_CHECK(dense.is_floating_point(), "dendnorm::", op, ": dense must have a floating dtype, got ",
              dtype_name(dense.scalar_type()));
  TORCH_CHECK(!nnz.has_value() || (*nnz >= 0 && dense.sym_numel() >= *nnz), "dendnorm::", op,
              ": nnz must be in [0, number of entries of dense] = [0, ", dense.sym_numel(), "], got ", nnz.value_or(0));
}

Tensors3 largest_connections(const Tensor& dense, std::optional<std::int64_t> nnz, std::string_view name) {
  const at::NoGradGuard no_grad;
  check_dense(dense, nnz);
  TORCH_CHECK_VALUE(at::isfinite(dense).all().item<bool>(), name, " must be finite, got nan or infinite values");
  const Tensor by_column = dense.t().reshape({-1});
  Tensor kept = by_column.ne(0);
  if (nnz.has_value()) {
    const Tensor magnitude = by_column.abs().to(by_column.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const Tensor score = magnitude.to(home_of("dendnorm::weakest", dense.device()));
    kept = call_weakest(score, dense.numel() - *nnz).logical_not().to(dense.device());
  }
  const Tensor keys = kept.nonzero().flatten();
  auto [ccol, row] = pattern_of_keys(keys, dense.size(0), dense.size(1));
  return {ccol, row, by_column.index_select(0, keys)};
}

Tensors3 largest_connections_meta(const Tensor& dense, std::optional<std::int64_t> nnz, std::string_view) {
  check_dense(dense, nnz);
  TORCH_CHECK(nnz.has_value(), "dendnorm::largest_connections: nnz must be given for tensors without values, got none");
  const auto indices = dense.options().dtype(at::kInt);
  return {at::empty_symint({dense.sym_size(1) + 1}, indices), at::empty({*nnz}, indices),
          at::empty({*nnz}, dense.options())};
}

// (size,), of a layer's dtypes, on the device of the indices and finite.
void check_values(const char* name, const Tensor& values, const c10::SymInt& size, const Tensor& indices) {
  TORCH_CHECK_TYPE(values.scalar_type() == at::kFloat || values.scalar_type() == at::kDouble, name,
                   " must be of dtype float32 or float64, got ", dtype_name(values.scalar_type()));
  TORCH_CHECK_VALUE(values.dim() == 1 && values.sym_size(0) == size, name, " must have shape (", size, ",), got ",
                    shape_text(values));
  TORCH_CHECK_VALUE(values.device() == indices.device(), name, " must be on ", indices.device(),
                    " like the indices, got ", values.device());
  TORCH_CHECK_VALUE(values.is_meta() || at::isfinite(values).all().item<bool>(), name,
                    " must be finite, got nan or infinite values");
}

Tensors3 connections_of_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                            const OptionalTensor& bias, std::int64_t rows, std::int64_t cols) {
  const at::NoGradGuard no_grad;
  const Tensor crow = as_index("crow_indices", crow_indices), col = as_index("col_indices", col_indices);
  check_view(crow, col, rows, cols, {"crow_indices", "col_indices"});
  check_values("values", values, col.sym_size(0), crow);
  if (given(bias)) {
    check_values("bias", *bias, rows, crow);
    TORCH_CHECK_TYPE(bias->scalar_type() == values.scalar_type(), "bias must be of values' dtype ",
                     dtype_name(values.scalar_type()), ", got ", dtype_name(bias->scalar_type()));
  }
  auto [ccol, row, order] = transposed(crow, col, cols);
  return {ccol, row, values.index_select(0, order)};
}

void rules(torch::Library& m) {
  m.impl("check_view", check_view_op);
  m.impl("both_views", both_views);
  m.impl("connections_of_csr", connections_of_csr);
}

void rules_of_values(torch::Library& m) {
  rules(m);
  m.impl("pattern_of_keys", pattern_of_keys);
  m.impl("largest_connections", largest_connections);
}

}  // namespace

Tensor as_index(std::string_view name, const Tensor& values) {
  TORCH_CHECK_TYPE(values.defined(), name, " must be a tensor, got none");
  TORCH_CHECK_TYPE(values.scalar_type() == at::kInt || values.scalar_type() == at::kLong, name,
                   " must be of dtype int32 or int64, got ", dtype_name(values.scalar_type()));
  TORCH_CHECK_VALUE(values.dim() == 1, name, " must have one dimension, got shape ", shape_text(values));
  if (values.scalar_type() == at::kLong && !values.is_meta() && values.numel() > 0) {
    const auto [low, high] = values.aminmax();
    const auto lowest = low.item<std::int64_t>(), highest = high.item<std::int64_t>();
    TORCH_CHECK_VALUE(lowest >= 0 && highest <= kMaxIndex, name, " must be in [0, 2^31), got ",
                      lowest < 0 ? lowest : highest);
  }
  return values.to(at::kInt, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
}

void check_view(const Tensor& compressed, const Tensor& indices, std::int64_t segments, std::int64_t size,
                PatternNames names) {
  check_lengths(compressed, indices, segments, names);
  const at::Device home = home_of("dendnorm::check_pattern", compressed.device());
  try {
    call_check_pattern(compressed.to(home), indices.to(home), size, names.compressed, names.indices);
  } catch (const c10::Error& error) {
    TORCH_CHECK_VALUE(false, error.what_without_backtrace());
  }
}

std::tuple<Tensor, Tensor, Tensor> transposed(const Tensor& compressed, const Tensor& indices, std::int64_t size) {
  const at::Device device = compressed.device(), home = home_of("dendnorm::transpose_pattern", device);
  const auto [pointers, others, perm] = call_transpose_pattern(compressed.to(home), indices.to(home), size);
  return {pointers.to(device), others.to(device), perm.to(device)};
}

// They are made of operations that every device has, or go by the CPU.
TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { rules_of_values(m); }
TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { rules_of_values(m); }
TORCH_LIBRARY_IMPL(dendnorm, CompositeExplicitAutograd, m) { rules_of_values(m); }

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  rules(m);
  m.impl("pattern_of_keys", pattern_of_keys_meta);
  m.impl("largest_connections", largest_connections_meta);
}

}  // namespace dendnorm::ops
