// The convolution on CUDA, out of PyTorch's own ops: the effective weights as a dense matrix, and its convolutions. A
// kernel that leaves the zeros out is yet to come. 16-bit images are convolved in float32, as the CPU's kernels
// accumulate.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bucketize.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "ops/call.h"
#include "ops/conv.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// The tensors' device; and autocast, which would reach the dense products, stays out.
struct Guard {
  c10::cuda::CUDAGuard device;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::DispatchKey::AutocastCUDA};

  explicit Guard(const Tensor& tensor) : device(tensor.device()) {}
};

// Where each connection lies in the dense matrix of filters by taps.
struct Places {
  std::int64_t filters, taps;
  Tensor index;

  explicit Places(const Pattern& p) : filters(p.crow_indices.size(0) - 1), taps(p.ccol_indices.size(0) - 1) {
    const Tensor number = at::arange(p.row_indices.size(0), p.row_indices.options());
    const Tensor column = at::bucketize(number, p.ccol_indices.slice(0, 1), false, true);
    index = p.row_indices.to(at::kLong) * taps + column;
  }

  Tensor dense(const Tensor& weights, const Window& w) const {
    return at::zeros({filters * taps}, weights.options())
        .scatter_(0, index, weights)
        .view({filters, taps / w.area(), w.kernel[0], w.kernel[1]});
  }
};

// Images in the type of the values, with the window's padding around them.
Tensor padded(const Tensor& images, const Tensor& weight, const Window& w) {
  const Tensor x = images.to(weight.scalar_type());
  if (w.padding == std::array<std::int64_t, 4>{}) return x;
  return at::constant_pad_nd(x, {w.padding[2], w.padding[3], w.padding[0], w.padding[1]});
}

Tensor sparse_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                     const Window& window) {
  const Tensor output = empty_sparse_conv2d(input, weight, bias, excitability, pattern, norm, window);
  if (output.numel() == 0) return output;
  const Guard guard(weight);
  const Tensor dense = Places(pattern).dense(call_effective_weight(weight, excitability, pattern, norm), window);
  output.copy_(at::convolution(padded(input, weight, window), dense, bias, window.stride, {0, 0}, window.dilation,
                               false, {0, 0}, window.groups));
  return output;
}

Tensor4 sparse_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               const Window& window, std::array<bool, 4> mask) {
  Gradients gradients =
      empty_sparse_conv2d_backward(grad_output, input, weight, excitability, pattern, norm, window, mask);
  const Guard guard(weight);
  const bool wants_values = gradients.weight.defined() || gradients.excitability.defined();
  const Places places(pattern);
  const Tensor dense = places.dense(call_effective_weight(weight, excitability, pattern, norm), window);
  const Tensor dy = grad_output.to(weight.scalar_type());
  if (gradients.input.defined() || wants_values) {
    const auto [dx, dw, db] = at::convolution_backward(dy, padded(input, weight, window), dense, std::nullopt,
                                                       window.stride, {0, 0}, window.dilation, false, {0, 0},
                                                       window.groups, {gradients.input.defined(), wants_values, false});
    if (gradients.input.defined()) {
      gradients.input.copy_(dx.narrow(2, window.padding[0], input.size(2)).narrow(3, window.padding[2], input.size(3)));
    }
    if (wants_values) {
      const auto [dv, de] =
          call_effective_weight_backward(dw.reshape({-1}).gather(0, places.index), weight, excitability, pattern, norm,
                                         {gradients.weight.defined(), gradients.excitability.defined()});
      if (gradients.weight.defined()) gradients.weight = dv;
      if (gradients.excitability.defined()) gradients.excitability = de;
    }
  }
  if (gradients.bias.defined()) gradients.bias.copy_(dy.sum(at::IntArrayRef{0, 2, 3}));
  return results_of(gradients, input, weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) {
  implement<sparse_conv2d>(m, "sparse_conv2d");
  implement<sparse_conv2d_backward>(m, "sparse_conv2d_backward");
}

}  // namespace dendnorm::ops
