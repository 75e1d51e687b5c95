// The convolution: torch::nn::Conv2d with few connections and a dendritic normalisation.
#include <ATen/TensorIndexing.h>
#include <c10/util/Exception.h>
#include <torch/nn/functional/padding.h>

#include <array>
#include <variant>

#include "core/window.h"
#include "nn/checks.h"
#include "nn/dendnorm.h"
#include "nn/layer.h"
#include "ops/call.h"
#include "ops/conv.h"

namespace dendnorm::nn {
namespace {

using at::Tensor;
using torch::nn::Conv2dOptions;

void check_at_least(const char* name, at::IntArrayRef values, int64_t least) {
  for (const int64_t value : values) {
    TORCH_CHECK_VALUE(value >= least, name, " must be at least ", least, ", got ", values);
  }
}

Conv2dOptions checked(const Conv2dOptions& conv) {
  const int64_t inputs = conv.in_channels(), outputs = conv.out_channels(), groups = conv.groups();
  check_at_least("in_channels", {inputs}, 1);
  check_at_least("out_channels", {outputs}, 1);
  check_at_least("groups", {groups}, 1);
  TORCH_CHECK_VALUE(inputs % groups == 0 && outputs % groups == 0, "groups must divide in_channels = ", inputs,
                    " and out_channels = ", outputs, ", got ", groups);
  check_at_least("kernel_size", *conv.kernel_size(), 1);
  check_at_least("stride", *conv.stride(), 1);
  check_at_least("dilation", *conv.dilation(), 1);
  if (const auto* padding = std::get_if<torch::ExpandingArray<2>>(&conv.padding())) {
    check_at_least("padding", **padding, 0);
  }
  const auto& stride = *conv.stride();
  TORCH_CHECK_VALUE(
      !std::holds_alternative<torch::enumtype::kSame>(conv.padding()) || (stride[0] == 1 && stride[1] == 1),
      "stride must be 1 where padding is torch::kSame, got ", at::IntArrayRef(stride));
  return conv;
}

int64_t taps(const Conv2dOptions& conv) {
  const auto& kernel = *conv.kernel_size();
  return conv.in_channels() / conv.groups() * kernel[0] * kernel[1];
}

SparseLinearOptions linear_options(const SparseConv2dOptions& options) {
  const Conv2dOptions conv = checked(options.conv());
  return SparseLinearOptions(taps(conv), conv.out_channels())
      .density(options.density())
      .nnz(options.nnz())
      .norm(options.norm())
      .bias(conv.bias())
      .seed(options.seed())
      .device(options.device())
      .dtype(options.dtype());
}

Window window_of(const Conv2dOptions& conv) {
  Window window;
  window.kernel = *conv.kernel_size();
  window.stride = *conv.stride();
  window.dilation = *conv.dilation();
  window.groups = conv.groups();
  for (int d = 0; d < 2; ++d) {
    int64_t before = 0, after = 0;
    if (const auto* padding = std::get_if<torch::ExpandingArray<2>>(&conv.padding())) {
      before = after = (**padding)[d];
    } else if (std::holds_alternative<torch::enumtype::kSame>(conv.padding())) {
      const int64_t total = window.dilation[d] * (window.kernel[d] - 1);
      before = total / 2;
      after = total - before;
    }
    window.padding[2 * d] = before;
    window.padding[2 * d + 1] = after;
  }
  return window;
}

// With margins of something else than zeros, which the op does not add by itself.
Tensor filled(const Tensor& images, const Conv2dOptions& conv, Window& window) {
  namespace F = torch::nn::functional;
  const auto [above, below, left, right] = window.padding;
  if (std::holds_alternative<torch::enumtype::kZeros>(conv.padding_mode()) || above + below + left + right == 0) {
    return images;
  }
  window.padding = {0, 0, 0, 0};
  F::PadFuncOptions options({left, right, above, below});
  if (std::holds_alternative<torch::enumtype::kReflect>(conv.padding_mode())) {
    options.mode(torch::kReflect);
  } else if (std::holds_alternative<torch::enumtype::kReplicate>(conv.padding_mode())) {
    options.mode(torch::kReplicate);
  } else {
    options.mode(torch::kCircular);
  }
  return F::pad(images, options);
}

}  // namespace

SparseConv2dOptions::SparseConv2dOptions(Conv2dOptions conv) : conv_(std::move(conv)) {}

SparseConv2dImpl::SparseConv2dImpl(SparseConv2dOptions options)
    : SparseLinearImpl(linear_options(options)), conv(options.conv()) {}

SparseConv2dImpl::SparseConv2dImpl(SparseLinearOptions options, Conv2dOptions given)
    : SparseLinearImpl(std::move(options), Unwritten{}), conv(std::move(given)) {}

Tensor SparseConv2dImpl::forward(const Tensor& input) {
  const int64_t channels = conv.in_channels();
  TORCH_CHECK((input.dim() == 4 || input.dim() == 3) && input.size(-3) == channels,
              "SparseConv2d: input must have shape (B, ", channels, ", H, W) or (", channels, ", H, W), got ",
              input.sizes());
  Window window = window_of(conv);
  const Tensor images = filled(input.dim() == 4 ? input : input.unsqueeze(0), conv, window);
  const Tensor output =
      ops::call_sparse_conv2d(images, weight, bias, norm->excitability, pattern_of(*this), norm_of(*this), window);
  return input.dim() == 4 ? output : output.squeeze(0);
}

torch::nn::Conv2d SparseConv2dImpl::to_dense() const {
  torch::NoGradGuard no_grad;
  auto dense = undrawn<torch::nn::Conv2d>(conv);
  dense->to(weight.device(), weight.scalar_type());
  const auto [filter, tap] = edges();
  dense->weight.zero_()
      .view({options.out_features(), options.in_features()})
      .index_put_({filter, tap}, effective_weight());
  if (bias.defined()) dense->bias.copy_(bias);
  dense->train(is_training());
  return dense;
}

std::shared_ptr<torch::nn::Module> SparseConv2dImpl::clone(const std::optional<torch::Device>& device) const {
  const std::shared_ptr<SparseConv2dImpl> copy(new SparseConv2dImpl(options_of_copy(device), conv));
  copy->copy_from(*this, device);
  return copy;
}

void SparseConv2dImpl::pretty_print(std::ostream& stream) const {
  const auto precision = stream.precision(3);
  stream << std::boolalpha << "dendnorm::nn::SparseConv2d(" << conv.in_channels() << ", " << conv.out_channels()
         << ", kernel_size=" << conv.kernel_size() << ", stride=" << conv.stride() << ", groups=" << conv.groups()
         << ", bias=" << bias.defined() << ", nnz=" << nnz() << ", density=" << density() << ", norm=" << norm->name()
         << ")";
  stream.precision(precision);
}

SparseConv2d SparseConv2d::from_dense(const torch::nn::Conv2d& conv, std::optional<double> density,
                                      const NormChoice& norm) {
  torch::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(!conv.is_empty(), "conv must be a torch::nn::Conv2d, got an empty one");
  const Conv2dOptions window =
      checked(Conv2dOptions(conv->options.in_channels(), conv->options.out_channels(), conv->options.kernel_size())
                  .stride(conv->options.stride())
                  .padding(conv->options.padding())
                  .dilation(conv->options.dilation())
                  .groups(conv->options.groups())
                  .bias(conv->bias.defined())
                  .padding_mode(conv->options.padding_mode()));
  const Tensor dense = conv->weight.detach().flatten(1);
  TORCH_CHECK_TYPE(dense.is_floating_point(), "conv.weight must be of a real floating dtype, got ",
                   dense.scalar_type());
  const Largest kept = largest_of(dense, "conv.weight", density, norm, conv->bias.defined());
  const std::shared_ptr<SparseConv2dImpl> layer(new SparseConv2dImpl(kept.options, window));
  layer->fill(kept.ccol, kept.row, kept.effective, conv->bias);
  take_modes(*layer, *conv);
  return SparseConv2d(layer);
}

}  // namespace dendnorm::nn
