// Derivatives of the convolution.
//
// Without a norm the op is bilinear, and sparse_conv2d_backward gives both of its adjoints, so that these two are each
// other's derivatives of any order. With one, the derivatives of the second order and those of forward mode are of the
// formula written out: effective weights by written_out.h, then the op without a norm.
#pragma once

#include <torch/csrc/autograd/variable.h>

#include <array>
#include <cstddef>
#include <tuple>

#include "core/norm.h"
#include "core/window.h"
#include "ops/autograd/node.h"

namespace dendnorm::ops {

struct Convolved {
  Norm norm;
  Window window;
};

template <class Constants>
auto parts_of_convolved(Constants& c) {
  auto& w = c.window;
  return std::tie(c.norm.a, c.norm.b, c.norm.p, w.kernel[0], w.kernel[1], w.stride[0], w.stride[1], w.padding[0],
                  w.padding[1], w.padding[2], w.padding[3], w.dilation[0], w.dilation[1], w.groups);
}
inline auto parts(Convolved& c) { return parts_of_convolved(c); }
inline auto parts(const Convolved& c) { return parts_of_convolved(c); }

struct SparseConv2dRule {  // operands: input, weight, excitability
  static constexpr const char* kName = "SparseConv2DBackward";
  static constexpr std::size_t kOperands = 3, kInputs = 4;
  using Constants = Convolved;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Convolved& constants,
                                                  std::array<bool, kInputs> mask);
};

struct SparseConv2dBackwardRule {  // operands: grad_output, input, weight, excitability
  static constexpr const char* kName = "SparseConv2DBackwardBackward";
  static constexpr std::size_t kOperands = 4, kInputs = 4;
  using Constants = Convolved;
  static constexpr bool kCompiled = false;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Convolved& constants,
                                                  std::array<bool, kInputs> mask);
};

}  // namespace dendnorm::ops
