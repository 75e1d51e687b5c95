// Hands tensors to csrc/cpu.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "ops/checks.h"

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would run on one thread only: compile this file with OpenMP, as PyTorch was"
#endif

namespace dendnorm::ops {
namespace {

using at::Tensor;

// PyTorch's threads. They get the caller's rounding and flush-to-zero modes, or a result would depend on who computed
// which part of it.
void parallel_for(std::int64_t items, cpu::ParallelBody body, void* context) {
#if defined(__x86_64__)
  const unsigned mode = _mm_getcsr();
  at::parallel_for(0, items, 1, [&](std::int64_t begin, std::int64_t end) {
    const unsigned own = _mm_getcsr();
    if (own != mode) _mm_setcsr(mode);
    body(context, begin, end);
    if (own != mode) _mm_setcsr(own);
  });
#else
  at::parallel_for(0, items, 1, [&](std::int64_t begin, std::int64_t end) { body(context, begin, end); });
#endif
}

cpu::Threads threads() { return {parallel_for, at::in_parallel_region() ? 1 : at::get_num_threads()}; }

cpu::Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return cpu::Type::kFloat64;
    case at::kBFloat16: return cpu::Type::kBFloat16;
    case at::kHalf: return cpu::Type::kFloat16;
    default: return cpu::Type::kFloat32;
  }
}

std::int64_t samples_of(const Tensor& activations) {
  std::int64_t samples = 1;
  for (std::int64_t d = 0; d + 1 < activations.dim(); ++d) samples *= activations.size(d);
  return samples;
}

// A (samples, neurons) view of any tensor, copied only where its strides fit neither order.
struct Matrix {
  Tensor tensor;  // keeps a copy alive
  cpu::Activations activations;
};

Matrix matrix_of(const Tensor& tensor) {
  const std::int64_t samples = samples_of(tensor), neurons = tensor.size(-1);
  Matrix matrix{tensor, {}};
  if (tensor.dim() != 2) {
    matrix.tensor = tensor.is_contiguous() ? tensor.view({samples, neurons}) : tensor.reshape({samples, neurons});
  }
  const bool rows = neurons <= 1 || matrix.tensor.stride(1) == 1;
  const bool columns = !rows && (samples <= 1 || matrix.tensor.stride(0) == 1);
  if (!rows && !columns) matrix.tensor = matrix.tensor.contiguous();
  matrix.activations.data = const_cast<void*>(matrix.tensor.const_data_ptr());
  matrix.activations.feature_major = columns;
  matrix.activations.stride = matrix.tensor.stride(columns ? 1 : 0);
  matrix.activations.type = type_of(tensor);
  return matrix;
}

cpu::View columns_of(const Pattern& p) {
  return {p.ccol_indices.const_data_ptr<std::int32_t>(), p.row_indices.const_data_ptr<std::int32_t>(), nullptr};
}

cpu::View rows_of(const Pattern& p) {
  return {p.crow_indices.const_data_ptr<std::int32_t>(), p.col_indices.const_data_ptr<std::int32_t>(),
          p.perm.const_data_ptr<std::int32_t>()};
}

struct Bytes {
  Tensor tensor;
  std::byte* data;
};

Bytes bytes(std::size_t count) {
  Tensor tensor = at::empty({static_cast<std::int64_t>(count)}, at::TensorOptions().dtype(at::kByte));
  return {tensor, reinterpret_cast<std::byte*>(tensor.mutable_data_ptr())};
}

template <class T>
cpu::Layer<T> layer_of(const Tensor& weight, const Tensor& excitability, const Pattern& pattern, const Norm& norm) {
  cpu::Layer<T> layer{};
  layer.rows = pattern.crow_indices.size(0) - 1;
  layer.view = rows_of(pattern);
  layer.values = weight.const_data_ptr<T>();
  if (excitability.defined()) {
    layer.excitability = {excitability.const_data_ptr<T>(), excitability.dim() == 1 && excitability.size(0) != 1};
  }
  layer.norm = norm;
  layer.threads = threads();
  return layer;
}

// The factors of all rows and the memory that holds them; null factors where every factor is 1.
template <class T>
struct RowFactors {
  Tensor memory;
  cpu::Factors<T> factors;

  explicit RowFactors(const cpu::Layer<T>& layer) {
    if (layer.norm.a == 0 && layer.norm.b == 0 && layer.excitability.data == nullptr) return;
    memory = at::empty({2, layer.rows}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    T* first = memory.mutable_data_ptr<T>();
    const bool wide = cpu::row_factors(layer, first, first + layer.rows);
    factors = {first, wide ? first + layer.rows : nullptr};
  }
};

bool needs_contiguous(const Tensor& tensor) { return tensor.defined() && !tensor.is_contiguous(); }
Tensor made_contiguous(const Tensor& tensor) { return needs_contiguous(tensor) ? tensor.contiguous() : tensor; }

template <class T>
void run_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& excitability,
                 const Pattern& pattern, const Norm& norm, const Tensor& output) {
  const auto& kernels = cpu::kernels();
  const Matrix x = matrix_of(input), y = matrix_of(output);
  const RowFactors<T> factors(layer_of<T>(weight, excitability, pattern, norm));
  cpu::Forward<T> f{};
  f.samples = samples_of(input);
  f.inputs = input.size(-1);
  f.outputs = output.size(-1);
  f.connections = weight.size(0);
  f.x = x.activations;
  f.y = y.activations;
  f.rows = rows_of(pattern);
  f.values = weight.const_data_ptr<T>();
  f.factors = factors.factors;
  f.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  f.threads = threads();
  if constexpr (std::is_same_v<T, float>) {
    const Bytes workspace = bytes(kernels.forward_workspace_f32(f));
    f.workspace = workspace.data;
    kernels.forward_f32(f);
  } else {
    const Bytes workspace = bytes(kernels.forward_workspace_f64(f));
    f.workspace = workspace.data;
    kernels.forward_f64(f);
  }
}

Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Tensor& ccol_indices, const Tensor& row_indices,
                     const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm, double a, double b,
                     double p) {
  const char* op = "sparse_linear";
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm = checked_norm(op, a, b, p);
  const Sizes sizes = check_layer(op, weight, excitability, pattern);
  check_activations(op, "input", input, sizes.inputs, weight);
  if (given(bias)) check_bias(op, *bias, sizes.outputs, weight);
  const Tensor output = empty_activations(input, sizes.outputs);
  const Tensor values = made_contiguous(weight), shift = made_contiguous(or_undefined(bias)),
               e = made_contiguous(or_undefined(excitability));
  if (weight.scalar_type() == at::kFloat) {
    run_forward<float>(input, values, shift, e, pattern, norm, output);
  } else {
    run_forward<double>(input, values, shift, e, pattern, norm, output);
  }
  return output;
}

template <class T>
void run_columns(cpu::Columns<T>& c) {
  const auto& kernels = cpu::kernels();
  c.threads = threads();
  if constexpr (std::is_same_v<T, float>) {
    const Bytes workspace = bytes(kernels.columns_workspace_f32(c));
    c.workspace = workspace.data;
    kernels.columns_f32(c);
  } else {
    const Bytes workspace = bytes(kernels.columns_workspace_f64(c));
    c.workspace = workspace.data;
    kernels.columns_f64(c);
  }
}

// Sums per-row parts of dC/de to e's own shape.
template <class T>
Tensor excitability_gradient(const std::vector<double>& parts, const Tensor& excitability) {
  Tensor gradient = at::empty(excitability.sizes(), excitability.options());
  T* data = gradient.mutable_data_ptr<T>();
  if (excitability.dim() == 1 && excitability.size(0) != 1) {
    for (std::size_t i = 0; i < parts.size(); ++i) data[i] = static_cast<T>(parts[i]);
  } else {
    data[0] = static_cast<T>(std::accumulate(parts.begin(), parts.end(), 0.0));
  }
  return gradient;
}

struct Gradients {
  Tensor input, weight, bias, excitability;
};

template <class T>
Gradients run_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& excitability,
                       const Pattern& pattern, const Norm& norm, std::array<bool, 4> mask) {
  Gradients gradients;
  const bool wants_e = mask[3] && excitability.defined(), wants_values = mask[1] || wants_e;
  const cpu::Layer<T> layer = layer_of<T>(weight, excitability, pattern, norm);
  // One factor per row finishes a gradient inside the pass over the columns; a row sum needs another pass over rows.
  const bool rows_pass = wants_values && (norm.b != 0 || (wants_e && layer.excitability.per_row));

  const Matrix dy = matrix_of(grad_output), x = matrix_of(input);
  Matrix dx;
  cpu::Columns<T> c{};
  c.samples = samples_of(input);
  c.inputs = input.size(-1);
  c.outputs = grad_output.size(-1);
  c.connections = weight.size(0);
  c.dy = dy.activations;
  c.x = x.activations;
  if (mask[0]) {
    gradients.input = empty_activations(input, input.sym_size(-1));
    dx = matrix_of(gradients.input);
    c.dx = dx.activations;
  }
  c.columns = columns_of(pattern);
  c.values = layer.values;
  std::optional<RowFactors<T>> factors;
  if (mask[0] || (mask[1] && !rows_pass)) {
    factors.emplace(layer);
    c.factors = factors->factors;
  }
  Tensor gradient;
  if (wants_values) {
    gradient = at::empty_like(weight);
    c.gradient = gradient.mutable_data_ptr<T>();
  }
  c.finish = mask[1] && !rows_pass;
  std::vector<double> dot_weights, dots;
  if (wants_e && !rows_pass) {
    dot_weights.resize(c.outputs);
    for (std::int64_t i = 0; i < c.outputs; ++i) {
      const std::int64_t count = layer.view.start[i + 1] - layer.view.start[i];
      dot_weights[i] = measure_row(norm, count, NoValues{}).inverse_d;
    }
    dots.resize(c.inputs);
    c.dot_weights = dot_weights.data();
    c.dots = dots.data();
  }
  if (mask[2]) {
    gradients.bias = at::empty({c.outputs}, weight.options());
    c.bias_gradient = gradients.bias.mutable_data_ptr<T>();
  }
  run_columns(c);

  if (rows_pass) {
    std::vector<double> parts(wants_e ? layer.rows : 0);
    cpu::norm_gradient(layer, c.gradient, mask[1] ? c.gradient : nullptr, wants_e ? parts.data() : nullptr);
    if (wants_e) gradients.excitability = excitability_gradient<T>(parts, excitability);
  } else if (wants_e) {
    gradients.excitability = excitability_gradient<T>(dots, excitability);
  }
  if (mask[1]) gradients.weight = gradient;
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sparse_linear_backward(
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
  const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
  Gradients g = weight.scalar_type() == at::kFloat
                    ? run_backward<float>(grad_output, input, values, e, pattern, norm, output_mask)
                    : run_backward<double>(grad_output, input, values, e, pattern, norm, output_mask);
  const auto or_empty = [](const Tensor& tensor, const Tensor& like) {
    return tensor.defined() ? tensor : at::empty({0}, like.options());
  };
  return {or_empty(g.input, input), or_empty(g.weight, weight), or_empty(g.bias, weight),
          or_empty(g.excitability, weight)};
}

Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Tensor& ccol_indices,
                        const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                        const Tensor& perm, double a, double b, double p) {
  const char* op = "effective_weight";
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm = checked_norm(op, a, b, p);
  check_layer(op, weight, excitability, pattern);
  const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
  const Tensor result = at::empty(weight.sizes(), weight.options());
  if (weight.scalar_type() == at::kFloat) {
    cpu::effective_weight(layer_of<float>(values, e, pattern, norm), result.mutable_data_ptr<float>());
  } else {
    cpu::effective_weight(layer_of<double>(values, e, pattern, norm), result.mutable_data_ptr<double>());
  }
  return result;
}

template <class T>
std::tuple<Tensor, Tensor> run_norm_gradient(const Tensor& grad, const Tensor& weight, const Tensor& excitability,
                                             const Pattern& pattern, const Norm& norm, std::array<bool, 2> mask) {
  const cpu::Layer<T> layer = layer_of<T>(weight, excitability, pattern, norm);
  const bool wants_e = mask[1] && excitability.defined();
  Tensor dv = at::empty({mask[0] ? weight.size(0) : 0}, weight.options());
  Tensor de = at::empty({0}, weight.options());
  std::vector<double> parts(wants_e ? layer.rows : 0);
  cpu::norm_gradient(layer, grad.const_data_ptr<T>(), mask[0] ? dv.mutable_data_ptr<T>() : nullptr,
                     wants_e ? parts.data() : nullptr);
  if (wants_e) de = excitability_gradient<T>(parts, excitability);
  return {dv, de};
}

std::tuple<Tensor, Tensor> effective_weight_backward(const Tensor& grad, const Tensor& weight,
                                                     const OptionalTensor& excitability, const Tensor& ccol_indices,
                                                     const Tensor& row_indices, const Tensor& crow_indices,
                                                     const Tensor& col_indices, const Tensor& perm, double a, double b,
                                                     double p, std::array<bool, 2> output_mask) {
  const char* op = "effective_weight_backward";
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm = checked_norm(op, a, b, p);
  check_layer(op, weight, excitability, pattern);
  check_gradient(op, grad, weight);
  const Tensor values = made_contiguous(weight), e = made_contiguous(or_undefined(excitability));
  const Tensor g = made_contiguous(grad);
  return weight.scalar_type() == at::kFloat ? run_norm_gradient<float>(g, values, e, pattern, norm, output_mask)
                                            : run_norm_gradient<double>(g, values, e, pattern, norm, output_mask);
}

template <class T>
void run_sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern, const Tensor& result) {
  const Matrix dy = matrix_of(rows), x = matrix_of(columns);
  cpu::Columns<T> c{};
  c.samples = samples_of(columns);
  c.inputs = columns.size(-1);
  c.outputs = rows.size(-1);
  c.connections = result.size(0);
  c.dy = dy.activations;
  c.x = x.activations;
  c.columns = columns_of(pattern);
  c.gradient = result.mutable_data_ptr<T>();
  run_columns(c);
}

Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Tensor& ccol_indices, const Tensor& row_indices,
                       const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Tensor result = empty_sampled_product(rows, columns, pattern);
  if (result.scalar_type() == at::kFloat) {
    run_sampled_product<float>(rows, columns, pattern, result);
  } else {
    run_sampled_product<double>(rows, columns, pattern, result);
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) {
  m.impl("sparse_linear", sparse_linear);
  m.impl("sparse_linear_backward", sparse_linear_backward);
  m.impl("effective_weight", effective_weight);
  m.impl("effective_weight_backward", effective_weight_backward);
  m.impl("sampled_product", sampled_product);
}

}  // namespace dendnorm::ops
