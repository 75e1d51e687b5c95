#include "ops/autograd/conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "ops/autograd/node_impl.h"
#include "ops/autograd/tangents.h"
#include "ops/autograd/written_out.h"
#include "ops/conv.h"

namespace dendnorm::ops {
namespace {

bool is_identity(const OptionalTensor& e, const Norm& norm) { return !given(e) && norm.a == 0 && norm.b == 0; }

void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

Tensor primal(const Tensor& tensor) { return has_tangent(tensor) ? tensor._fw_primal(0) : tensor; }
Tensor tangent(const Tensor& tensor) { return tensor._fw_grad(0); }

// The convolution of effective weights and its adjoints, as parts of formulas: in the types of their operands.
struct Bilinear {
  const Pattern& pattern;
  const Window& window;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};

  Tensor output(const Tensor& x, const Tensor& w, const OptionalTensor& bias = std::nullopt) const {
    return call_sparse_conv2d(x, w, bias, std::nullopt, pattern, Norm{}, window);
  }
  Tensor4 adjoint(const Tensor& dy, const Tensor& x, const Tensor& w, std::array<bool, 4> mask) const {
    return call_sparse_conv2d_backward(dy, x, w, std::nullopt, pattern, Norm{}, window, mask);
  }
  // Of x and w only the shapes matter where their own gradient is asked for.
  Tensor to_input(const Tensor& dy, const Tensor& x, const Tensor& w) const {
    return std::get<0>(adjoint(dy, x, w, {true, false, false, false}));
  }
  Tensor to_weight(const Tensor& dy, const Tensor& x, const Tensor& w) const {
    return std::get<1>(adjoint(dy, x, w, {false, true, false, false}));
  }
};

Tensor sum_of_filters(const Tensor& dy, const Tensor& weight) {
  return dy.sum(at::IntArrayRef{0, 2, 3}, false, weight.scalar_type());
}

Tensor spread_over(const Tensor& by_filter, const Tensor& images) {
  return by_filter.to(images.scalar_type()).reshape({1, -1, 1, 1}).expand_as(images);
}

Tensor4 written_out(const Tensor& dy, const Tensor& x, const Tensor& v, const OptionalTensor& e, const Pattern& pattern,
                    const Norm& norm, const Window& window, std::array<bool, 4> mask) {
  const Tensor none = at::empty({0}, v.options());
  Tensor dx = at::empty({0}, x.options()), dv = none, db = none, de = none;
  const Bilinear conv{pattern, window};
  const WrittenOut rule(v, e, pattern, norm);
  if (mask[0]) dx = conv.to_input(dy, x, rule.weight(v));
  if (mask[1] || mask[3]) {
    std::tie(dv, de) = rule.gradient(conv.to_weight(dy, x, v), v, e, {mask[1], mask[3]});
  }
  if (mask[2]) db = sum_of_filters(dy, v);
  return {dx, dv, db, de};
}

Tensor output_with_tangents(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& e, const Pattern& pattern, const Norm& norm, const Window& window) {
  const Bilinear conv{pattern, window};
  if (!is_identity(e, norm)) {
    return conv.output(input, WrittenOut(weight, e, pattern, norm).weight(weight), bias);
  }
  const Tensor x = primal(input), w = primal(weight), shift = or_undefined(bias);
  const Tensor output = conv.output(x, w, shift.defined() ? OptionalTensor(primal(shift)) : std::nullopt);
  Tensor change;
  if (has_tangent(input)) accumulate(change, conv.output(tangent(input), w));
  if (has_tangent(weight)) accumulate(change, conv.output(x, tangent(weight)));
  if (has_tangent(shift)) accumulate(change, spread_over(tangent(shift), output));
  output._set_fw_grad(change, 0, false);
  return output;
}

// Without a norm: linear in grad_output, and in input or weight.
Tensor4 adjoint_with_tangents(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              const Pattern& pattern, const Window& window, std::array<bool, 4> mask) {
  const Bilinear conv{pattern, window};
  const Tensor dy = primal(grad_output), x = primal(input), w = primal(weight);
  const Tensor4 results = conv.adjoint(dy, x, w, mask);
  const auto& [dx, dw, db, de] = results;
  Tensor dx_change, dw_change;
  if (mask[0] && has_tangent(grad_output)) accumulate(dx_change, conv.to_input(tangent(grad_output), x, w));
  if (mask[0] && has_tangent(weight)) accumulate(dx_change, conv.to_input(dy, x, tangent(weight)));
  if (mask[1] && has_tangent(grad_output)) accumulate(dw_change, conv.to_weight(tangent(grad_output), x, w));
  if (mask[1] && has_tangent(input)) accumulate(dw_change, conv.to_weight(dy, tangent(input), w));
  if (dx_change.defined()) dx._set_fw_grad(dx_change, 0, false);
  if (dw_change.defined()) dw._set_fw_grad(dw_change, 0, false);
  if (mask[2] && has_tangent(grad_output)) db._set_fw_grad(sum_of_filters(tangent(grad_output), w), 0, false);
  return results;
}

Tensor sparse_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                     const Window& window) {
  if (any_tangent(input, weight, bias, excitability)) {
    return output_with_tangents(input, weight, bias, excitability, pattern, norm, window);
  }
  const Tensor shift = or_undefined(bias), e = or_undefined(excitability);
  return recorded<SparseConv2dRule>(
      [&](auto& node) { node.save({input, weight, e}, pattern, {norm, window}); },
      [&] { return call_sparse_conv2d(input, weight, bias, excitability, pattern, norm, window); }, itself, input,
      weight, shift, e);
}

Tensor4 sparse_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                               const Window& window, std::array<bool, 4> mask) {
  if (any_tangent(grad_output, input, weight, excitability)) {
    return is_identity(excitability, norm)
               ? adjoint_with_tangents(grad_output, input, weight, pattern, window, mask)
               : written_out(grad_output, input, weight, excitability, pattern, norm, window, mask);
  }
  const Tensor e = or_undefined(excitability);
  return recorded<SparseConv2dBackwardRule>(
      [&](auto& node) { node.save({grad_output, input, weight, e}, pattern, {norm, window}); },
      [&] {
        return call_sparse_conv2d_backward(grad_output, input, weight, excitability, pattern, norm, window, mask);
      },
      [&](const Tensor4& results) { return wanted<4>(results, {mask[0], mask[1], mask[2], mask[3] && e.defined()}); },
      grad_output, input, weight, e);
}

}  // namespace

variable_list SparseConv2dRule::gradients(const variable_list& grads, const Saved<kOperands>& saved,
                                          const Convolved& constants, std::array<bool, kInputs> mask) {
  const auto& [input, weight, e] = saved.operand;
  return listed(call_sparse_conv2d_backward(grads[0], input, weight, optional(e), saved.pattern, constants.norm,
                                            constants.window, mask),
                mask);
}

variable_list SparseConv2dBackwardRule::gradients(const variable_list& grads, const Saved<kOperands>& saved,
                                                  const Convolved& constants, std::array<bool, kInputs> mask) {
  const auto& [dy, x, w, e] = saved.operand;
  if (is_identity(optional(e), constants.norm)) {
    const Bilinear conv{saved.pattern, constants.window};
    const Tensor &to_dx = grads[0], &to_dw = grads[1], &to_db = grads[2];
    variable_list result(kInputs);
    if (mask[0] && to_dx.defined()) accumulate(result[0], conv.output(to_dx, w));
    if (mask[0] && to_dw.defined()) accumulate(result[0], conv.output(x, to_dw));
    if (mask[0] && to_db.defined()) accumulate(result[0], spread_over(to_db, dy));
    if (mask[1] && to_dw.defined()) result[1] = conv.to_input(dy, x, to_dw);
    if (mask[2] && to_dx.defined()) result[2] = conv.to_weight(dy, to_dx, w);
    return result;
  }
  const auto formula = [&](const std::array<Tensor, kOperands>& operands) {
    const auto& [grad_output, input, weight, excitability] = operands;
    const auto wanted = defined<4>(grads);
    return listed(written_out(grad_output, input, weight, optional(excitability), saved.pattern, constants.norm,
                              constants.window, wanted),
                  wanted);
  };
  return gradients_through(formula, grads, saved.operand, mask);
}

template class RecordedNode<SparseConv2dRule>;
template class RecordedNode<SparseConv2dBackwardRule>;

TORCH_LIBRARY_IMPL(dendnorm, Autograd, m) {
  implement<sparse_conv2d>(m, "sparse_conv2d");
  implement<sparse_conv2d_backward>(m, "sparse_conv2d_backward");
}

}  // namespace dendnorm::ops
