// The ops of a layer on a device: everything between the dispatcher and the kernels that does not depend on which
// device it is. A backend (cpu.cpp, cuda.cpp) hands tensors to its kernels; for T = float and double it has
//
//   Layer<T>                           its kernels' structure
//   Guard(tensor)                      in force while kernels are launched for a tensor
//   check_views(op, pattern)           refuses views of different patterns, where looking costs nothing
//   forward<T>(input, weight, bias, excitability, pattern, norm, output)
//   backward<T>(grad_output, input, weight, excitability, pattern, norm, wanted, gradients)
//   effective_weight<T>(weight, excitability, pattern, norm, result)
//   norm_gradient<T>(grad, weight, excitability, pattern, norm, dv, de)
//   sampled_product<T>(rows, columns, pattern, result)
//
// with checked, contiguous values, the results to be filled, and undefined tensors for what is absent or not wanted.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <array>
#include <cstdint>

#include "core/layer.h"
#include "core/wanted.h"
#include "ops/layer.h"
#include "ops/schema.h"

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

// Whether the layer scales its values: otherwise every factor is 1.
template <class Layer>
bool scales(const Layer& layer) {
  return layer.norm.a != 0 || layer.norm.b != 0 || layer.excitability.data != nullptr;
}

inline Wanted wanted_of(const Gradients& gradients, const at::Tensor& excitability, const Norm& norm) {
  Wanted wanted;
  wanted.input = gradients.input.defined();
  wanted.weight = gradients.weight.defined();
  wanted.bias = gradients.bias.defined();
  wanted.excitability = gradients.excitability.defined();
  wanted.values_by_row = norm.b != 0;
  wanted.excitability_by_row = excitability.defined() && is_per_row(excitability);
  return wanted;
}

// Where dC/dw goes: to the gradient of weight, which is made of it in place, or to memory of its own.
inline at::Tensor values_gradient(const Wanted& wanted, const Gradients& gradients, const at::Tensor& weight) {
  return wanted.values() && !wanted.weight ? at::empty_like(weight) : gradients.weight;
}

inline at::Tensor made_contiguous(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_contiguous() ? tensor.contiguous() : tensor;
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
  using Guard = typename Backend::Guard;

  static Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
    return forward(input, weight, bias, excitability, pattern, norm);
  }

  static Tensor4 sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                        const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                        std::array<bool, 4> mask) {
    return backward(grad_output, input, weight, excitability, pattern, norm, mask);
  }

  // The same with what a backend passes on from one to the other.
  template <class... Kept>
  static Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                        const Kept&... kept) {
    const Tensor output = empty_sparse_linear(input, weight, bias, excitability, pattern, norm);
    Backend::check_views("sparse_linear", pattern);
    const Guard guard(weight);
    const Tensor values = made_contiguous(weight), shift = made_contiguous(or_undefined(bias)),
                 e = made_contiguous(or_undefined(excitability));
    with_values(weight, [&](auto t) {
      Backend::template forward<decltype(t)>(input, values, shift, e, pattern, norm, output, kept...);
    });
    return output;
  }

  template <class... Kept>
  static Tensor4 backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                          const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                          std::array<bool, 4> mask, const Kept&... kept) {
    const Gradients gradients =
        empty_sparse_linear_backward(grad_output, input, weight, excitability, pattern, norm, mask);
    Backend::check_views("sparse_linear_backward", pattern);
    const Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
    const Wanted wanted = wanted_of(gradients, e, norm);
    with_values(weight, [&](auto t) {
      Backend::template backward<decltype(t)>(grad_output, input, values, e, pattern, norm, wanted, gradients, kept...);
    });
    return results_of(gradients, input, weight);
  }

  static Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                                 const Norm& norm) {
    const Tensor result = empty_effective_weight(weight, excitability, pattern, norm);
    Backend::check_views("effective_weight", pattern);
    const Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
    with_values(weight,
                [&](auto t) { Backend::template effective_weight<decltype(t)>(values, e, pattern, norm, result); });
    return result;
  }

  static Tensor2 effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                           const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
    const Gradients gradients = empty_effective_weight_backward(grad, weight, excitability, pattern, norm, mask);
    Backend::check_views("effective_weight_backward", pattern);
    const Guard guard(weight);
    const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability)),
                 g = made_contiguous(grad);
    with_values(weight, [&](auto t) {
      Backend::template norm_gradient<decltype(t)>(g, values, e, pattern, norm, gradients.weight,
                                                   gradients.excitability);
    });
    return results_of(gradients, weight);
  }

  static Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern) {
    const Tensor result = empty_sampled_product(rows, columns, pattern);
    Backend::check_views("sampled_product", pattern);
    const Guard guard(result);
    with_values(result,
                [&](auto t) { Backend::template sampled_product<decltype(t)>(rows, columns, pattern, result); });
    return result;
  }

  static void register_in(torch::Library& m) {
    implement<sparse_linear>(m, "sparse_linear");
    implement<sparse_linear_backward>(m, "sparse_linear_backward");
    implement<effective_weight>(m, "effective_weight");
    implement<effective_weight_backward>(m, "effective_weight_backward");
    implement<sampled_product>(m, "sampled_product");
  }
};

}  // namespace dendnorm::ops
