// Under autocast the activations become 16-bit; values, bias and excitability stay as they are, for the kernels
// accumulate in float32 and read each value once for a whole tile of samples.
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/layer.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

template <c10::DeviceType kDevice>
Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const bool lower = weight.scalar_type() == at::kFloat && input.scalar_type() == at::kFloat;
  const Tensor x =
      lower ? at::autocast::cached_cast(at::autocast::get_lower_precision_fp_from_device_type(kDevice), input, kDevice)
            : input;
  return call_sparse_linear(x, weight, bias, excitability, pattern, norm);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, AutocastCPU, m) { implement<sparse_linear<c10::DeviceType::CPU>>(m, "sparse_linear"); }
TORCH_LIBRARY_IMPL(dendnorm, AutocastCUDA, m) { implement<sparse_linear<c10::DeviceType::CUDA>>(m, "sparse_linear"); }

}  // namespace dendnorm::ops
