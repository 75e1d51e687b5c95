// Hands the tensors of a convolution to csrc/cpu.
#include "cpu/conv.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "ops/conv.h"
#include "ops/layer_ops.h"
#include "ops/layer_on_cpu.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

cpu::Images images_of(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          type_of(tensor)};
}

cpu::ConvShape shape_of(const Tensor& input, const Pattern& pattern, const Window& window) {
  return {window,
          input.size(0),
          input.size(1),
          input.size(2),
          input.size(3),
          pattern.crow_indices.size(0) - 1,
          pattern.row_indices.size(0)};
}

// What a call of the kernels needs besides its results.
class Memory {
 public:
  cpu::Room room() {
    return {[](void* context, std::size_t bytes) { return static_cast<Memory*>(context)->take(bytes); }, this};
  }

 private:
  std::byte* take(std::size_t bytes) {
    if (!workspace_.has_value()) return workspace_.emplace(bytes).data();
    more_.push_back(at::empty({static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte)));
    return static_cast<std::byte*>(more_.back().mutable_data_ptr());
  }

  std::optional<Workspace> workspace_;
  std::vector<Tensor> more_;
};

// The effective weights, or the values where they are the same.
template <class T>
Tensor effective(const cpu::Layer<T>& layer, const Tensor& values) {
  if (!scales(layer)) return values;
  const Tensor w = at::empty_like(values);
  cpu::effective_weight(layer, w.mutable_data_ptr<T>());
  return w;
}

Tensor sparse_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                     const Window& window) {
  const Tensor output = empty_sparse_conv2d(input, weight, bias, excitability, pattern, norm, window);
  check_same_pattern("sparse_conv2d", pattern);
  const Tensor values = made_contiguous(weight), shift = made_contiguous(or_undefined(bias)),
               e = made_contiguous(or_undefined(excitability));
  prefer_large_pages(output);
  with_values(weight, [&](auto t) {
    using T = decltype(t);
    const Tensor w = effective(threaded_layer<T>(values, e, pattern, norm), values);
    cpu::ConvForward<T> f{};
    f.shape = shape_of(input, pattern, window);
    f.x = images_of(input);
    f.y = images_of(output);
    f.rows = rows_of(pattern);
    f.columns = columns_of(pattern);
    f.weights = w.const_data_ptr<T>();
    f.bias = shift.defined() ? shift.const_data_ptr<T>() : nullptr;
    f.threads = threads();
    Memory memory;
    f.room = memory.room();
    cpu::conv_forward(f, cpu::kernels<T>());
  });
  return output;
}

Tensor4 sparse_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               const Window& window, std::array<bool, 4> mask) {
  const Gradients gradients =
      empty_sparse_conv2d_backward(grad_output, input, weight, excitability, pattern, norm, window, mask);
  check_same_pattern("sparse_conv2d_backward", pattern);
  const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
  if (gradients.input.defined()) prefer_large_pages(gradients.input);
  with_values(weight, [&](auto t) {
    using T = decltype(t);
    const cpu::Layer<T> layer = threaded_layer<T>(values, e, pattern, norm);
    const bool wants_values = gradients.weight.defined() || gradients.excitability.defined();
    const Tensor w = gradients.input.defined() ? effective(layer, values) : values;
    // dC/dw, of which that of weight is made in place.
    Tensor g = gradients.weight;
    if (wants_values && !g.defined()) g = at::empty_like(values);
    cpu::ConvBackward<T> c{};
    c.shape = shape_of(input, pattern, window);
    c.dy = images_of(grad_output);
    c.x = images_of(input);
    c.dx = images_of(gradients.input);
    c.rows = rows_of(pattern);
    c.columns = columns_of(pattern);
    c.weights = w.const_data_ptr<T>();
    c.gradient = wants_values ? g.mutable_data_ptr<T>() : nullptr;
    c.bias_gradient = gradients.bias.defined() ? gradients.bias.mutable_data_ptr<T>() : nullptr;
    c.threads = threads();
    Memory memory;
    c.room = memory.room();
    cpu::conv_backward(c, cpu::kernels<T>());
    if (wants_values && scales(layer)) {
      raw_gradients(layer, g.const_data_ptr<T>(), gradients.weight, gradients.excitability);
    }
  });
  return results_of(gradients, input, weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) {
  implement<sparse_conv2d>(m, "sparse_conv2d");
  implement<sparse_conv2d_backward>(m, "sparse_conv2d_backward");
}

}  // namespace dendnorm::ops
