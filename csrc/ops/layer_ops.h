// The ops of a layer on a device: everything between the dispatcher and the kernels that does not depend on which
// device it is. A backend (cpu.cpp, cuda.cpp) hands tensors to its kernels; for T = float and double it has
//
//   Layer<T>                           its kernels' structure
//   Guard(tensor)                      in force while kernels are launched for a tensor
//   forward<T>(input, weight, bias, excitability, pattern, norm, output)
//   backward<T>(grad_output, input, weight, excitability, pattern, norm, mask) -> Gradients
//   effective_weight<T>(weight, excitability, pattern, norm, result)
//   norm_gradient<T>(grad, weight, excitability, pattern, norm, dv, de)   dv or de undefined: not wanted
//   sampled_product<T>(rows, columns, pattern, result)
//
// with checked, contiguous values, and undefined tensors for what is absent.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "core/layer.h"
#include "ops/checks.h"

namespace dendnorm::ops {

inline std::int64_t samples_of(const at::Tensor& activations) {
  std::int64_t samples = 1;
  for (std::int64_t d = 0; d + 1 < activations.dim(); ++d) samples *= activations.size(d);
  return samples;
}

inline Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return Type::kFloat64;
    case at::kBFloat16: return Type::kBFloat16;
    case at::kHalf: return Type::kFloat16;
    default: return Type::kFloat32;
  }
}

// A (samples, neurons) view of any tensor, copied only where its strides fit neither order.
struct Matrix {
  at::Tensor tensor;  // keeps a copy alive
  Activations activations;

  Matrix() = default;
  explicit Matrix(const at::Tensor& from) : tensor(from), activations{} {
    const std::int64_t samples = samples_of(from), neurons = from.size(-1);
    if (from.dim() != 2) {
      tensor = from.is_contiguous() ? from.view({samples, neurons}) : from.reshape({samples, neurons});
    }
    const bool rows = neurons <= 1 || tensor.stride(1) == 1;
    const bool columns = !rows && (samples <= 1 || tensor.stride(0) == 1);
    if (!rows && !columns) tensor = tensor.contiguous();
    activations.data = const_cast<void*>(tensor.const_data_ptr());
    activations.feature_major = columns;
    activations.stride = tensor.stride(columns ? 1 : 0);
    activations.type = type_of(from);
  }
};

inline View columns_of(const Pattern& p) {
  return {p.ccol_indices.const_data_ptr<std::int32_t>(), p.row_indices.const_data_ptr<std::int32_t>(), nullptr};
}

inline View rows_of(const Pattern& p) {
  return {p.crow_indices.const_data_ptr<std::int32_t>(), p.col_indices.const_data_ptr<std::int32_t>(),
          p.perm.const_data_ptr<std::int32_t>()};
}

inline bool is_per_row(const at::Tensor& excitability) { return excitability.dim() == 1 && excitability.size(0) != 1; }

// A layer as the kernels of either device know it.
template <class Layer, class T>
Layer layer_of(const at::Tensor& weight, const at::Tensor& excitability, const Pattern& pattern, const Norm& norm) {
  Layer layer{};
  layer.rows = pattern.crow_indices.size(0) - 1;
  layer.view = rows_of(pattern);
  layer.values = weight.const_data_ptr<T>();
  if (excitability.defined()) layer.excitability = {excitability.const_data_ptr<T>(), is_per_row(excitability)};
  layer.norm = norm;
  return layer;
}

// Of input, weight, bias and excitability; undefined where not wanted.
struct Gradients {
  at::Tensor input, weight, bias, excitability;
};

inline at::Tensor made_contiguous(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_contiguous() ? tensor.contiguous() : tensor;
}

inline at::Tensor or_empty(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.defined() ? tensor : at::empty({0}, like.options());
}

// f(T{}) with the type of the values.
template <class F>
void with_values(const at::Tensor& weight, F f) {
  if (weight.scalar_type() == at::kFloat) {
    f(float{});
  } else {
    f(double{});
  }
}

template <class Backend>
struct LayerOps {
  using Tensor = at::Tensor;

  static Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& excitability, const Tensor& ccol_indices, const Tensor& row_indices,
                              const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm, double a,
                              double b, double p) {
    const char* op = "sparse_linear";
    const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
    const Norm norm = checked_norm(op, a, b, p);
    const Sizes sizes = check_layer(op, weight, excitability, pattern);
    check_activations(op, "input", input, sizes.inputs, weight);
    if (given(bias)) check_bias(op, *bias, sizes.outputs, weight);
    const typename Backend::Guard guard(weight);
    const Tensor output = empty_activations(input, sizes.outputs);
    const Tensor values = made_contiguous(weight), shift = made_contiguous(or_undefined(bias)),
                 e = made_contiguous(or_undefined(excitability));
    with_values(weight, [&](auto t) {
      Backend::template forward<decltype(t)>(input, values, shift, e, pattern, norm, output);
    });
    return output;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> sparse_linear_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& excitability,
      const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
      const Tensor& perm, double a, double b, double p, std::array<bool, 4> output_mask) {
    const char* op = "sparse_linear_backward";
    const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
    const Norm norm = checked_norm(op, a, b, p);
    const Sizes sizes = check_layer(op, weight, excitability, pattern);
    check_activations(op, "input", input, sizes.inputs, weight);
    check_activations(op, "grad_output", grad_output, sizes.outputs, weight);
    check_same_leading(op, "grad_output", grad_output, "input", input);
    const typename Backend::Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
    Gradients g;
    with_values(weight, [&](auto t) {
      g = Backend::template backward<decltype(t)>(grad_output, input, values, e, pattern, norm, output_mask);
    });
    return {or_empty(g.input, input), or_empty(g.weight, weight), or_empty(g.bias, weight),
            or_empty(g.excitability, weight)};
  }

  static Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Tensor& ccol_indices,
                                 const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                                 const Tensor& perm, double a, double b, double p) {
    const char* op = "effective_weight";
    const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
    const Norm norm = checked_norm(op, a, b, p);
    check_layer(op, weight, excitability, pattern);
    const typename Backend::Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
    const Tensor result = at::empty(weight.sizes(), weight.options());
    with_values(weight,
                [&](auto t) { Backend::template effective_weight<decltype(t)>(values, e, pattern, norm, result); });
    return result;
  }

  static std::tuple<Tensor, Tensor> effective_weight_backward(const Tensor& grad, const Tensor& weight,
                                                              const OptionalTensor& excitability,
                                                              const Tensor& ccol_indices, const Tensor& row_indices,
                                                              const Tensor& crow_indices, const Tensor& col_indices,
                                                              const Tensor& perm, double a, double b, double p,
                                                              std::array<bool, 2> output_mask) {
    const char* op = "effective_weight_backward";
    const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
    const Norm norm = checked_norm(op, a, b, p);
    check_layer(op, weight, excitability, pattern);
    check_gradient(op, grad, weight);
    const typename Backend::Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability)),
                 g = made_contiguous(grad);
    Tensor dv, de;
    if (output_mask[0]) dv = at::empty(weight.sizes(), weight.options());
    if (output_mask[1] && e.defined()) de = at::empty(e.sizes(), e.options());
    with_values(weight,
                [&](auto t) { Backend::template norm_gradient<decltype(t)>(g, values, e, pattern, norm, dv, de); });
    return {or_empty(dv, weight), or_empty(de, weight)};
  }

  static Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Tensor& ccol_indices,
                                const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                                const Tensor& perm) {
    const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
    const Tensor result = empty_sampled_product(rows, columns, pattern);
    const typename Backend::Guard guard(result);
    with_values(result,
                [&](auto t) { Backend::template sampled_product<decltype(t)>(rows, columns, pattern, result); });
    return result;
  }

  static void register_in(torch::Library& m) {
    m.impl("sparse_linear", sparse_linear);
    m.impl("sparse_linear_backward", sparse_linear_backward);
    m.impl("effective_weight", effective_weight);
    m.impl("effective_weight_backward", effective_weight_backward);
    m.impl("sampled_product", sampled_product);
  }
};

}  // namespace dendnorm::ops
