// The convolution where no device matters: through the dispatcher, without values, and under autocast.
#include "ops/conv.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace dendnorm::ops {

using at::Tensor;

Tensor call_sparse_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                          const Window& window) {
  static const Op<decltype(call_sparse_conv2d)> op("dendnorm::sparse_conv2d");
  return op(input, weight, bias, excitability, pattern, norm, window);
}

Tensor4 call_sparse_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                    const Window& window, std::array<bool, 4> mask) {
  static const Op<decltype(call_sparse_conv2d_backward)> op("dendnorm::sparse_conv2d_backward");
  return op(grad_output, input, weight, excitability, pattern, norm, window, mask);
}

namespace {

Tensor4 on_meta(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm, const Window& window,
                std::array<bool, 4> mask) {
  return results_of(empty_sparse_conv2d_backward(grad_output, input, weight, excitability, pattern, norm, window, mask),
                    input, weight);
}

// As sparse_linear's: see autocast.cpp.
template <c10::DeviceType kDevice>
Tensor under_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                      const Window& window) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const bool lower = weight.scalar_type() == at::kFloat && input.scalar_type() == at::kFloat;
  const Tensor x =
      lower ? at::autocast::cached_cast(at::autocast::get_lower_precision_fp_from_device_type(kDevice), input, kDevice)
            : input;
  return call_sparse_conv2d(x, weight, bias, excitability, pattern, norm, window);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  implement<empty_sparse_conv2d>(m, "sparse_conv2d");
  implement<on_meta>(m, "sparse_conv2d_backward");
}
TORCH_LIBRARY_IMPL(dendnorm, AutocastCPU, m) { implement<under_autocast<c10::DeviceType::CPU>>(m, "sparse_conv2d"); }
TORCH_LIBRARY_IMPL(dendnorm, AutocastCUDA, m) { implement<under_autocast<c10::DeviceType::CUDA>>(m, "sparse_conv2d"); }

}  // namespace dendnorm::ops
