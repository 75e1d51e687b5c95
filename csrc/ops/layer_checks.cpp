#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "ops/layer_checks.h"

namespace dendnorm::ops {
void check_norm(const char* op, const Norm& norm) {
  TORCH_CHECK(std::isfinite(norm.a), "dendnorm::", op, ": a must be a finite number, got ", norm.a);
  TORCH_CHECK(std::isfinite(norm.b), "dendnorm::", op, ": b must be a finite number, got ", norm.b);
  TORCH_CHECK(std::isfinite(norm.p) && norm.p >= 1, "dendnorm::", op, ": p must be a finite number of at least 1, got ",
              norm.p);
}

using at::Tensor;

namespace {

void check_indices(const char* op, const char* name, const Tensor& indices, const Tensor& weight) {
  require_dtype(op, name, indices, {at::kInt});
  require_one_dimension(op, name, indices);
  require_device_of(op, name, indices, "weight", weight);
  require_contiguous(op, name, indices);
}

LayerSizes check_pattern(const char* op, const Pattern& pattern, const Tensor& weight) {
  check_indices(op, "ccol_indices", pattern.ccol_indices, weight);
  check_indices(op, "row_indices", pattern.row_indices, weight);
  check_indices(op, "crow_indices", pattern.crow_indices, weight);
  check_indices(op, "col_indices", pattern.col_indices, weight);
  check_indices(op, "perm", pattern.perm, weight);
  TORCH_CHECK(pattern.ccol_indices.sym_size(0) >= 1, "dendnorm::", op,
              ": ccol_indices must have in_features + 1 entries, got none");
  TORCH_CHECK(pattern.crow_indices.sym_size(0) >= 1, "dendnorm::", op,
              ": crow_indices must have out_features + 1 entries, got none");
  const c10::SymInt nnz = weight.sym_size(0);
  const char* of = "connections of weight";
  require_one_for_each(op, "row_indices", pattern.row_indices, nnz, of);
  require_one_for_each(op, "col_indices", pattern.col_indices, nnz, of);
  require_one_for_each(op, "perm", pattern.perm, nnz, of);
  return {pattern.ccol_indices.sym_size(0) - 1, pattern.crow_indices.sym_size(0) - 1, nnz};
}

}  // namespace

LayerSizes check_layer(const char* op, const Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                       const Norm& norm) {
  check_norm(op, norm);
  require_dtype(op, "weight", weight, {at::kFloat, at::kDouble});
  require_one_dimension(op, "weight", weight);
  const LayerSizes sizes = check_pattern(op, pattern, weight);
  if (given(excitability)) {
    const Tensor& e = *excitability;
    require_dtype_of(op, "excitability", e, "weight", weight);
    require_device_of(op, "excitability", e, "weight", weight);
    const bool shared = e.dim() == 0 || (e.dim() == 1 && e.sym_size(0) == 1);
    TORCH_CHECK(shared || (e.dim() == 1 && e.sym_size(0) == sizes.outputs), "dendnorm::", op,
                ": excitability must have shape (), (1,) or (out_features,) = (", sizes.outputs, ",), got ",
                e.sym_sizes());
  }
  return sizes;
}

void check_type_of_activations(const char* op, const char* name, const Tensor& activations, const Tensor& weight) {
  require_device_of(op, name, activations, "weight", weight);
  if (weight.scalar_type() == at::kFloat) {
    require_dtype(op, name, activations, {at::kFloat, at::kBFloat16, at::kHalf}, " where weight has float32");
  } else {
    require_dtype(op, name, activations, {at::kDouble}, " where weight has float64");
  }
}

void check_bias(const char* op, const Tensor& bias, const c10::SymInt& size, const Tensor& weight) {
  TORCH_CHECK(bias.dim() == 1 && bias.sym_size(0) == size, "dendnorm::", op,
              ": bias must have shape (out_features,) = (", size, ",), got ", bias.sym_sizes());
  require_dtype_of(op, "bias", bias, "weight", weight);
  require_device_of(op, "bias", bias, "weight", weight);
}

Tensor empty_vector(const c10::SymInt& size, const Tensor& like) { return at::empty_symint({size}, like.options()); }

Tensor empty_excitability(const OptionalTensor& excitability) {
  return given(excitability) ? at::empty_symint(excitability->sym_sizes(), excitability->options()) : Tensor();
}

namespace {

void check_activations(const char* op, const char* name, const Tensor& activations, const c10::SymInt& size,
                       const Tensor& weight) {
  TORCH_CHECK(activations.dim() >= 1 && activations.sym_size(-1) == size, "dendnorm::", op, ": ", name,
              " must have shape (*, ", size, "), got ", activations.sym_sizes());
  check_type_of_activations(op, name, activations, weight);
}

// Two activations of the same samples.
void check_same_leading(const char* op, const char* name, const Tensor& activations, const char* other_name,
                        const Tensor& other) {
  const auto mine = activations.sym_sizes(), theirs = other.sym_sizes();
  TORCH_CHECK(mine.slice(0, mine.size() - 1).equals(theirs.slice(0, theirs.size() - 1)), "dendnorm::", op, ": ", name,
              " must have the leading sizes of ", other_name, ", ", theirs, ", got ", mine);
  require_dtype_of(op, name, activations, other_name, other);
}

// Whether samples are adjacent in memory: then a result of the same samples keeps that order.
bool is_feature_major(const Tensor& activations) {
  if (activations.dim() != 2) return false;
  const auto sizes = activations.sym_sizes(), strides = activations.sym_strides();
  return strides[0] == 1 && strides[1] != 1 && sizes[0] > 1 && sizes[1] > 1 && strides[1] >= sizes[0];
}

// (*, size) with the leading sizes and the order in memory of `like`.
Tensor empty_activations(const Tensor& like, const c10::SymInt& size) {
  if (is_feature_major(like)) return at::empty_symint({size, like.sym_size(0)}, like.options()).t();
  c10::SymDimVector sizes(like.sym_sizes().begin(), like.sym_sizes().end());
  sizes.back() = size;
  return at::empty_symint(sizes, like.options());
}

Tensor or_empty(const Tensor& result, const Tensor& like) { return result.defined() ? result : empty_vector(0, like); }

}  // namespace

Tensor empty_product(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const c10::SymInt& inputs, const c10::SymInt& outputs) {
  check_activations(op, "input", input, inputs, weight);
  if (given(bias)) check_bias(op, *bias, outputs, weight);
  return empty_activations(input, outputs);
}

Tensor empty_sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  const char* op = "sparse_linear";
  const LayerSizes sizes = check_layer(op, weight, excitability, pattern, norm);
  return empty_product(op, input, weight, bias, sizes.inputs, sizes.outputs);
}

Gradients empty_sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                       const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                       std::array<bool, 4> mask) {
  const char* op = "sparse_linear_backward";
  const LayerSizes sizes = check_layer(op, weight, excitability, pattern, norm);
  check_activations(op, "input", input, sizes.inputs, weight);
  check_activations(op, "grad_output", grad_output, sizes.outputs, weight);
  check_same_leading(op, "grad_output", grad_output, "input", input);
  Gradients gradients;
  if (mask[0]) gradients.input = empty_activations(input, sizes.inputs);
  if (mask[1]) gradients.weight = empty_vector(sizes.connections, weight);
  if (mask[2]) gradients.bias = empty_vector(sizes.outputs, weight);
  if (mask[3]) gradients.excitability = empty_excitability(excitability);
  return gradients;
}

Tensor empty_effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                              const Norm& norm) {
  return empty_vector(check_layer("effective_weight", weight, excitability, pattern, norm).connections, weight);
}

Gradients empty_effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                          const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
  const char* op = "effective_weight_backward";
  const LayerSizes sizes = check_layer(op, weight, excitability, pattern, norm);
  require_shape_of(op, "grad", grad, "weight", weight);
  require_dtype_of(op, "grad", grad, "weight", weight);
  require_device_of(op, "grad", grad, "weight", weight);
  Gradients gradients;
  if (mask[0]) gradients.weight = empty_vector(sizes.connections, weight);
  if (mask[1]) gradients.excitability = empty_excitability(excitability);
  return gradients;
}

Tensor empty_sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern) {
  const char* op = "sampled_product";
  require_dtype(op, "columns", columns, {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf});
  const at::ScalarType type = columns.scalar_type();
  const Tensor result =
      at::empty_symint({pattern.row_indices.sym_numel()}, columns.options().dtype(is_16_bit(type) ? at::kFloat : type));
  const LayerSizes sizes = check_pattern(op, pattern, result);
  check_activations(op, "rows", rows, sizes.outputs, result);
  check_activations(op, "columns", columns, sizes.inputs, result);
  check_same_leading(op, "rows", rows, "columns", columns);
  return result;
}

Tensor4 results_of(const Gradients& gradients, const Tensor& input, const Tensor& weight) {
  return {or_empty(gradients.input, input), or_empty(gradients.weight, weight), or_empty(gradients.bias, weight),
          or_empty(gradients.excitability, weight)};
}

Tensor2 results_of(const Gradients& gradients, const Tensor& weight) {
  return {or_empty(gradients.weight, weight), or_empty(gradients.excitability, weight)};
}

}  // namespace dendnorm::ops
