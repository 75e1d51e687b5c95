// Forward mode: the ops for inputs with tangents.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }
inline bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

at::Tensor sparse_linear_with_tangents(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                       const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm);
at::Tensor sampled_product_with_tangents(const at::Tensor& rows, const at::Tensor& columns, const Pattern& pattern);

}  // namespace dendnorm::ops
