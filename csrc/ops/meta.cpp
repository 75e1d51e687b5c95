// Shapes, dtypes and strides without values: what tracing and meta tensors need.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "ops/checks.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Tensor& ccol_indices, const Tensor& row_indices,
                     const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm, double a, double b,
                     double p) {
  const char* op = "sparse_linear";
  checked_norm(op, a, b, p);
  const Sizes sizes =
      check_layer(op, weight, excitability, {ccol_indices, row_indices, crow_indices, col_indices, perm});
  check_activations(op, "input", input, sizes.inputs, weight);
  if (given(bias)) check_bias(op, *bias, sizes.outputs, weight);
  return empty_activations(input, sizes.outputs);
}

Tensor empty_of(bool wanted, const c10::SymInt& size, const Tensor& like) {
  return at::empty_symint({wanted ? size : c10::SymInt(0)}, like.options());
}

Tensor empty_excitability(bool wanted, const OptionalTensor& excitability, const Tensor& weight) {
  return wanted && given(excitability) ? at::empty_symint(excitability->sym_sizes(), excitability->options())
                                       : empty_of(false, 0, weight);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sparse_linear_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& excitability,
    const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
    const Tensor& perm, double a, double b, double p, std::array<bool, 4> output_mask) {
  const char* op = "sparse_linear_backward";
  checked_norm(op, a, b, p);
  const Sizes sizes =
      check_layer(op, weight, excitability, {ccol_indices, row_indices, crow_indices, col_indices, perm});
  check_activations(op, "input", input, sizes.inputs, weight);
  check_activations(op, "grad_output", grad_output, sizes.outputs, weight);
  check_same_leading(op, "grad_output", grad_output, "input", input);
  return {output_mask[0] ? empty_activations(input, sizes.inputs) : empty_of(false, 0, input),
          empty_of(output_mask[1], sizes.connections, weight), empty_of(output_mask[2], sizes.outputs, weight),
          empty_excitability(output_mask[3], excitability, weight)};
}

Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Tensor& ccol_indices,
                        const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                        const Tensor& perm, double a, double b, double p) {
  const char* op = "effective_weight";
  checked_norm(op, a, b, p);
  check_layer(op, weight, excitability, {ccol_indices, row_indices, crow_indices, col_indices, perm});
  return at::empty_symint(weight.sym_sizes(), weight.options());
}

std::tuple<Tensor, Tensor> effective_weight_backward(const Tensor& grad, const Tensor& weight,
                                                     const OptionalTensor& excitability, const Tensor& ccol_indices,
                                                     const Tensor& row_indices, const Tensor& crow_indices,
                                                     const Tensor& col_indices, const Tensor& perm, double a, double b,
                                                     double p, std::array<bool, 2> output_mask) {
  const char* op = "effective_weight_backward";
  checked_norm(op, a, b, p);
  const Sizes sizes =
      check_layer(op, weight, excitability, {ccol_indices, row_indices, crow_indices, col_indices, perm});
  check_gradient(op, grad, weight);
  return {empty_of(output_mask[0], sizes.connections, weight),
          empty_excitability(output_mask[1], excitability, weight)};
}

Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Tensor& ccol_indices, const Tensor& row_indices,
                       const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm) {
  return empty_sampled_product(rows, columns, {ccol_indices, row_indices, crow_indices, col_indices, perm});
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  m.impl("sparse_linear", sparse_linear);
  m.impl("sparse_linear_backward", sparse_linear_backward);
  m.impl("effective_weight", effective_weight);
  m.impl("effective_weight_backward", effective_weight_backward);
  m.impl("sampled_product", sampled_product);
}

}  // namespace dendnorm::ops
