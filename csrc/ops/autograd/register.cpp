// Derivatives of any order.
//
// First derivatives are ops themselves (sparse_linear_backward, effective_weight_backward). Where a derivative of a
// derivative is asked for, or a forward-mode one, those ops are written out in differentiable ones instead.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>

#include "ops/autograd/nodes.h"
#include "ops/autograd/tangents.h"
#include "ops/autograd/written_out.h"
#include "ops/call.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;
using torch::autograd::compute_requires_grad;

torch::autograd::SavedVariable saved(const Tensor& tensor) { return torch::autograd::SavedVariable(tensor, false); }

Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  if (any_tangent(input, weight, bias, excitability)) {
    return sparse_linear_with_tangents(input, weight, bias, excitability, pattern, norm);
  }
  const Tensor shift = or_undefined(bias), e = or_undefined(excitability);
  return recorded<SparseLinearNode>(
      [&](SparseLinearNode& node) {
        node.input = saved(input);
        node.weight = saved(weight);
        node.excitability = saved(e);
        node.pattern.save(pattern);
        node.norm = norm;
      },
      [&] { return call_sparse_linear(input, weight, bias, excitability, pattern, norm); }, input, weight, shift, e);
}

Tensor4 sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               std::array<bool, 4> mask) {
  if (compute_requires_grad(grad_output, input, weight, or_undefined(excitability)) ||
      any_tangent(grad_output, input, weight, excitability)) {
    return written_out_backward(grad_output, input, weight, excitability, pattern, norm, mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_sparse_linear_backward(grad_output, input, weight, excitability, pattern, norm, mask);
}

Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                        const Norm& norm) {
  if (any_tangent(weight, excitability)) return WrittenOut(weight, excitability, pattern, norm).weight(weight);
  const Tensor e = or_undefined(excitability);
  return recorded<EffectiveWeightNode>(
      [&](EffectiveWeightNode& node) {
        node.weight = saved(weight);
        node.excitability = saved(e);
        node.pattern.save(pattern);
        node.norm = norm;
      },
      [&] { return call_effective_weight(weight, excitability, pattern, norm); }, weight, e);
}

Tensor2 effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                  const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
  if (compute_requires_grad(grad, weight, or_undefined(excitability)) || any_tangent(grad, weight, excitability)) {
    return WrittenOut(weight, excitability, pattern, norm).gradient(grad, weight, excitability, mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_effective_weight_backward(grad, weight, excitability, pattern, norm, mask);
}

Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern) {
  if (any_tangent(rows, columns)) return sampled_product_with_tangents(rows, columns, pattern);
  return recorded<SampledProductNode>(
      [&](SampledProductNode& node) {
        node.rows = saved(rows);
        node.columns = saved(columns);
        node.pattern.save(pattern);
      },
      [&] { return call_sampled_product(rows, columns, pattern); }, rows, columns);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, Autograd, m) {
  implement<sparse_linear>(m, "sparse_linear");
  implement<sparse_linear_backward>(m, "sparse_linear_backward");
  implement<effective_weight>(m, "effective_weight");
  implement<effective_weight_backward>(m, "effective_weight_backward");
  implement<sampled_product>(m, "sampled_product");
}

}  // namespace dendnorm::ops
