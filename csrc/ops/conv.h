// What the ops of a convolution accept and give, for every device and for Meta.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "core/norm.h"
#include "core/window.h"
#include "ops/layer.h"
#include "ops/schema.h"

namespace dendnorm::ops {

template <>
struct Listed<const Window&> {
  using Types = std::tuple<at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, std::int64_t>;
  static Types list(const Window& w) { return {w.kernel, w.stride, w.padding, w.dilation, w.groups}; }
  static Window pack(at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                     std::int64_t groups);
};

// Each checks an op's arguments and gives its uninitialised results, as in layer.h.

// input (B, C, H, W), of weight's dtype or, where that is float32, of 16 bits; weight (nnz,); bias (M,); excitability
// (), (1,) or (M,). The result is (B, M, H', W'), in the order of input in memory: samples adjacent, channels adjacent,
// or contiguous.
at::Tensor empty_sparse_conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               const Window& window);

Gradients empty_sparse_conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                                       const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                       const Window& window, std::array<bool, 4> mask);

// The ops, through the dispatcher.
at::Tensor call_sparse_conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                              const Window& window);
Tensor4 call_sparse_conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                                    const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                    const Window& window, std::array<bool, 4> mask);

}  // namespace dendnorm::ops
