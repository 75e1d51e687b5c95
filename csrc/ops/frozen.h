// A layer that only computes: effective weights in row order, without a norm, a column view or derivatives.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/require.h"

namespace dendnorm::ops {

// Checks the arguments of frozen_linear, and gives its uninitialised result; input as for sparse_linear, weight (nnz,)
// in row order, bias (M,), crow_indices (M + 1,) int32, col_indices (nnz,) int32, or int16 with the bits of unsigned
// numbers.
at::Tensor empty_frozen_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const at::Tensor& crow_indices, const at::Tensor& col_indices, std::int64_t in_features);

}  // namespace dendnorm::ops
