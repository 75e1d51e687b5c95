// Under autocast the activations become 16-bit; values, bias and excitability stay as they are, for the kernels
// accumulate in float32 and read each value once for a whole tile of samples.
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

template <c10::DeviceType kDevice>
Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Tensor& ccol_indices, const Tensor& row_indices,
                     const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm, double a, double b,
                     double p) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
                           const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, double, double);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("dendnorm::sparse_linear", "").typed<Signature>();
  c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const bool lower = weight.scalar_type() == at::kFloat && input.scalar_type() == at::kFloat;
  const Tensor x =
      lower ? at::autocast::cached_cast(at::autocast::get_lower_precision_fp_from_device_type(kDevice), input, kDevice)
            : input;
  return op.call(x, weight, bias, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, AutocastCPU, m) { m.impl("sparse_linear", sparse_linear<c10::DeviceType::CPU>); }
TORCH_LIBRARY_IMPL(dendnorm, AutocastCUDA, m) { m.impl("sparse_linear", sparse_linear<c10::DeviceType::CUDA>); }

}  // namespace dendnorm::ops
