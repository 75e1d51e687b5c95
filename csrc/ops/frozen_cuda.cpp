// The op frozen_linear on CUDA: out of PyTorch's own ops, by the dense weight. Right, and no faster than dense.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cstdint>

#include "ops/frozen.h"
#include "ops/require.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

Tensor frozen_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Tensor& crow_indices,
                     const Tensor& col_indices, std::int64_t in_features) {
  const Tensor output = empty_frozen_linear(input, weight, bias, crow_indices, col_indices, in_features);
  const c10::cuda::CUDAGuard guard(weight.device());
  const std::int64_t rows = crow_indices.size(0) - 1;
  const Tensor row = at::repeat_interleave(crow_indices.diff().to(at::kLong), weight.size(0));
  const Tensor dense = at::zeros({rows * in_features}, weight.options());
  Tensor col = col_indices.to(at::kLong);
  if (col_indices.scalar_type() == at::kShort) col.bitwise_and_(0xFFFF);
  dense.index_copy_(0, row * in_features + col, weight);
  Tensor sums = at::matmul(input.to(weight.scalar_type()), dense.view({rows, in_features}).t());
  if (given(bias)) sums.add_(*bias);
  output.copy_(sums);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { m.impl("frozen_linear", frozen_linear); }

}  // namespace dendnorm::ops
