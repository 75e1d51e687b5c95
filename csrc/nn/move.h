// What Module::to may do to values: they stay in 32 bits or more, for sums of many small steps need them, and the ops
// take 16-bit activations as they are.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <optional>

namespace dendnorm::nn {

inline torch::Dtype value_dtype(torch::Dtype wanted) {
  if (wanted == torch::kHalf || wanted == torch::kBFloat16) return torch::kFloat;
  TORCH_CHECK_TYPE(
      wanted == torch::kFloat || wanted == torch::kDouble,
      "dtype of a sparse layer must be float32 or float64 (float16 and bfloat16 keep float32 values), got ", wanted);
  return wanted;
}

// In place, with the gradient.
inline void move_values(torch::Tensor& values, const std::optional<torch::Device>& device,
                        const std::optional<torch::Dtype>& dtype, bool non_blocking) {
  if (!values.defined()) return;
  const auto type = value_dtype(dtype.value_or(values.scalar_type()));
  const auto options = values.options().device(device.value_or(values.device())).dtype(type);
  const torch::Tensor grad = values.grad();
  values.set_data(values.detach().to(options, non_blocking));
  if (grad.defined()) values.mutable_grad() = grad.to(options, non_blocking);
}

}  // namespace dendnorm::nn
