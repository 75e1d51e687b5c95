#include <ATen/ops/empty.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "ops/conv.h"
#include "ops/layer_checks.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;
using c10::SymInt;

struct Sizes {
  LayerSizes layer;
  std::array<SymInt, 4> input, output;
};

template <std::size_t n>
std::array<std::int64_t, n> listed(const char* name, at::IntArrayRef values) {
  TORCH_CHECK(values.size() == n, "dendnorm: ", name, " of a sparse convolution must have ", n, " entries, got ",
              values);
  std::array<std::int64_t, n> result;
  std::copy(values.begin(), values.end(), result.begin());
  return result;
}

template <std::size_t n>
void require_at_least(const char* op, const char* name, const std::array<std::int64_t, n>& values, std::int64_t least) {
  TORCH_CHECK(*std::min_element(values.begin(), values.end()) >= least, "dendnorm::", op, ": ", name,
              " must be at least ", least, ", got ", at::IntArrayRef(values));
}

Sizes check_conv(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& excitability,
                 const Pattern& pattern, const Norm& norm, const Window& window) {
  require_at_least(op, "kernel_size", window.kernel, 1);
  require_at_least(op, "stride", window.stride, 1);
  require_at_least(op, "padding", window.padding, 0);
  require_at_least(op, "dilation", window.dilation, 1);
  TORCH_CHECK(window.groups >= 1, "dendnorm::", op, ": groups must be at least 1, got ", window.groups);
  const LayerSizes layer = check_layer(op, weight, excitability, pattern, norm);
  TORCH_CHECK(layer.outputs % window.groups == 0, "dendnorm::", op, ": groups must divide the ", layer.outputs,
              " filters of crow_indices, got ", window.groups);
  TORCH_CHECK(layer.inputs % window.area() == 0, "dendnorm::", op, ": kernel_size must have an area that divides the ",
              layer.inputs, " columns of ccol_indices, got ", at::IntArrayRef(window.kernel));
  const SymInt channels = layer.inputs / window.area() * window.groups;
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == channels, "dendnorm::", op, ": input must have shape (B, ",
              channels, ", H, W), got ", input.sym_sizes());
  check_type_of_activations(op, "input", input, weight);
  for (int d = 0; d < 2; ++d) {
    const SymInt size = input.sym_size(2 + d) + window.padding[2 * d] + window.padding[2 * d + 1];
    TORCH_CHECK(size >= window.extent(d), "dendnorm::", op, ": input must have at least ", window.extent(d),
                d == 0 ? " rows" : " columns", ", padding included, for the window to fit, got ", size);
  }
  return {layer,
          {input.sym_size(0), channels, input.sym_size(2), input.sym_size(3)},
          {input.sym_size(0), layer.outputs, window.positions(0, input.sym_size(2)),
           window.positions(1, input.sym_size(3))}};
}

// Whether samples are adjacent in memory: then results of the same samples keep that order.
bool is_batch_innermost(const Tensor& images) {
  const auto sizes = images.sym_sizes(), strides = images.sym_strides();
  if (!(sizes[0] > 1 && strides[0] == 1)) return false;
  for (int d = 1; d < 4; ++d) {
    if (sizes[d] > 1 && strides[d] < sizes[0]) return false;
  }
  return true;
}

// In the order of `like` in memory.
Tensor empty_images(const Tensor& like, const std::array<SymInt, 4>& sizes) {
  const auto& [samples, channels, rows, columns] = sizes;
  if (is_batch_innermost(like)) {
    return at::empty_symint({channels, rows, columns, samples}, like.options()).permute({3, 0, 1, 2});
  }
  return at::empty_symint(sizes, like.options(), like.suggest_memory_format());
}

}  // namespace

Window Listed<const Window&>::pack(at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                                   at::IntArrayRef dilation, std::int64_t groups) {
  return {listed<2>("kernel_size", kernel), listed<2>("stride", stride), listed<4>("padding", padding),
          listed<2>("dilation", dilation), groups};
}

Tensor empty_sparse_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                           const Window& window) {
  const char* op = "sparse_conv2d";
  const Sizes sizes = check_conv(op, input, weight, excitability, pattern, norm, window);
  if (given(bias)) check_bias(op, *bias, sizes.layer.outputs, weight);
  return empty_images(input, sizes.output);
}

Gradients empty_sparse_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                       const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                       const Window& window, std::array<bool, 4> mask) {
  const char* op = "sparse_conv2d_backward";
  const Sizes sizes = check_conv(op, input, weight, excitability, pattern, norm, window);
  TORCH_CHECK(grad_output.sym_sizes().equals(sizes.output), "dendnorm::", op, ": grad_output must have shape ",
              c10::SymIntArrayRef(sizes.output), ", got ", grad_output.sym_sizes());
  require_device_of(op, "grad_output", grad_output, "weight", weight);
  require_dtype_of(op, "grad_output", grad_output, "input", input);
  Gradients gradients;
  if (mask[0]) gradients.input = empty_images(input, sizes.input);
  if (mask[1]) gradients.weight = empty_vector(sizes.layer.connections, weight);
  if (mask[2]) gradients.bias = empty_vector(sizes.layer.outputs, weight);
  if (mask[3]) gradients.excitability = empty_excitability(excitability);
  return gradients;
}

}  // namespace dendnorm::ops
