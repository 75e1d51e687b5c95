// The ops of a layer without values, for tracing and meta tensors: what they check, and the shapes, dtypes and strides
// of their results.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>

#include "ops/layer.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

Tensor4 sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               std::array<bool, 4> mask) {
  return results_of(empty_sparse_linear_backward(grad_output, input, weight, excitability, pattern, norm, mask), input,
                    weight);
}

Tensor2 effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                  const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
  return results_of(empty_effective_weight_backward(grad, weight, excitability, pattern, norm, mask), weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  implement<empty_sparse_linear>(m, "sparse_linear");
  implement<sparse_linear_backward>(m, "sparse_linear_backward");
  implement<empty_effective_weight>(m, "effective_weight");
  implement<effective_weight_backward>(m, "effective_weight_backward");
  implement<empty_sampled_product>(m, "sampled_product");
}

}  // namespace dendnorm::ops
