// Derivatives of any order.
//
// First derivatives are ops themselves (sparse_linear_backward, effective_weight_backward), with the same bits whether
// or not their own derivatives may be asked for. Those, and forward-mode ones, are of the formulas written out in
// differentiable ops.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/autograd/nodes.h"
#include "ops/autograd/tangents.h"
#include "ops/autograd/written_out.h"
#include "ops/call.h"
#include "ops/kept_rows.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  if (any_tangent(input, weight, bias, excitability)) {
    return sparse_linear_with_tangents(input, weight, bias, excitability, pattern, norm);
  }
  const Tensor shift = or_undefined(bias), e = or_undefined(excitability);
  const bool keeps = norm.b != 0 && torch::autograd::compute_requires_grad(input, weight, shift, e);
  const RowKeeper* keeper = keeps ? row_keeper(input, weight, shift, e) : nullptr;
  Tensor rows;
  const auto compute = [&] {
    return keeper != nullptr ? keeper->forward(input, weight, bias, excitability, pattern, norm, rows)
                             : call_sparse_linear(input, weight, bias, excitability, pattern, norm);
  };
  return recorded<SparseLinearRule>([&](auto& node) { node.save({input, weight, e, rows}, pattern, norm); }, compute,
                                    itself, input, weight, shift, e);
}

Tensor4 sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               std::array<bool, 4> mask) {
  if (any_tangent(grad_output, input, weight, excitability)) {
    return written_out_backward(grad_output, input, weight, excitability, pattern, norm, mask);
  }
  const Tensor e = or_undefined(excitability);
  return recorded<SparseLinearBackwardRule>(
      [&](auto& node) { node.save({grad_output, input, weight, e}, pattern, norm); },
      [&] { return call_sparse_linear_backward(grad_output, input, weight, excitability, pattern, norm, mask); },
      [&](const Tensor4& results) { return wanted<4>(results, {mask[0], mask[1], mask[2], mask[3] && e.defined()}); },
      grad_output, input, weight, e);
}

Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                        const Norm& norm) {
  if (any_tangent(weight, excitability)) return WrittenOut(weight, excitability, pattern, norm).weight(weight);
  const Tensor e = or_undefined(excitability);
  return recorded<EffectiveWeightRule>([&](auto& node) { node.save({weight, e}, pattern, norm); },
                                       [&] { return call_effective_weight(weight, excitability, pattern, norm); },
                                       itself, weight, e);
}

Tensor2 effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                  const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
  if (any_tangent(grad, weight, excitability)) {
    return WrittenOut(weight, excitability, pattern, norm).gradient(grad, weight, excitability, mask);
  }
  const Tensor e = or_undefined(excitability);
  return recorded<EffectiveWeightBackwardRule>(
      [&](auto& node) { node.save({grad, weight, e}, pattern, norm); },
      [&] { return call_effective_weight_backward(grad, weight, excitability, pattern, norm, mask); },
      [&](const Tensor2& results) { return wanted<2>(results, {mask[0], mask[1] && e.defined()}); }, grad, weight, e);
}

Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern) {
  if (any_tangent(rows, columns)) return sampled_product_with_tangents(rows, columns, pattern);
  return recorded<SampledProductRule>([&](auto& node) { node.save({rows, columns}, pattern, Norm{}); },
                                      [&] { return call_sampled_product(rows, columns, pattern); }, itself, rows,
                                      columns);
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
