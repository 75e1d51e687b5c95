// Hands tensors to csrc/cpu.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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
#include "ops/layer_ops.h"

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

struct Bytes {
  Tensor tensor;
  std::byte* data;
};

Bytes bytes(std::size_t count) {
  Tensor tensor = at::empty({static_cast<std::int64_t>(count)}, at::TensorOptions().dtype(at::kByte));
  return {tensor, reinterpret_cast<std::byte*>(tensor.mutable_data_ptr())};
}

template <class T>
cpu::Layer<T> threaded_layer(const Tensor& weight, const Tensor& excitability, const Pattern& pattern,
                             const Norm& norm) {
  auto layer = layer_of<cpu::Layer<T>, T>(weight, excitability, pattern, norm);
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
void excitability_gradient(const std::vector<double>& parts, const Tensor& gradient) {
  T* data = gradient.mutable_data_ptr<T>();
  if (is_per_row(gradient)) {
    for (std::size_t i = 0; i < parts.size(); ++i) data[i] = static_cast<T>(parts[i]);
  } else {
    data[0] = static_cast<T>(std::accumulate(parts.begin(), parts.end(), 0.0));
  }
}

struct Backend {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  template <class T>
  static void forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& excitability,
                      const Pattern& pattern, const Norm& norm, const Tensor& output) {
    const auto& kernels = cpu::kernels();
    const Matrix<cpu::Activations> x(input), y(output);
    const RowFactors<T> factors(threaded_layer<T>(weight, excitability, pattern, norm));
    cpu::Forward<T> f{};
    f.samples = samples_of(input);
    f.inputs = input.size(-1);
    f.outputs = output.size(-1);
    f.connections = weight.size(0);
    f.x = x.activations;
    f.y = y.activations;
    f.rows = rows_of<cpu::View>(pattern);
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

  template <class T>
  static Gradients backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                            const Tensor& excitability, const Pattern& pattern, const Norm& norm,
                            std::array<bool, 4> mask) {
    Gradients gradients;
    const bool wants_e = mask[3] && excitability.defined(), wants_values = mask[1] || wants_e;
    if (wants_e) gradients.excitability = at::empty(excitability.sizes(), excitability.options());
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    // One factor per row finishes a gradient inside the pass over the columns; a row sum needs another pass over rows.
    const bool rows_pass = wants_values && (norm.b != 0 || (wants_e && layer.excitability.per_row));

    const Matrix<cpu::Activations> dy(grad_output), x(input);
    Matrix<cpu::Activations> dx;
    cpu::Columns<T> c{};
    c.samples = samples_of(input);
    c.inputs = input.size(-1);
    c.outputs = grad_output.size(-1);
    c.connections = weight.size(0);
    c.dy = dy.activations;
    c.x = x.activations;
    if (mask[0]) {
      gradients.input = empty_activations(input, input.sym_size(-1));
      dx = Matrix<cpu::Activations>(gradients.input);
      c.dx = dx.activations;
    }
    c.columns = columns_of<cpu::View>(pattern);
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
      if (wants_e) excitability_gradient<T>(parts, gradients.excitability);
    } else if (wants_e) {
      excitability_gradient<T>(dots, gradients.excitability);
    }
    if (mask[1]) gradients.weight = gradient;
    return gradients;
  }

  template <class T>
  static void effective_weight(const Tensor& weight, const Tensor& excitability, const Pattern& pattern,
                               const Norm& norm, const Tensor& result) {
    cpu::effective_weight(threaded_layer<T>(weight, excitability, pattern, norm), result.mutable_data_ptr<T>());
  }

  template <class T>
  static void norm_gradient(const Tensor& grad, const Tensor& weight, const Tensor& excitability,
                            const Pattern& pattern, const Norm& norm, const Tensor& dv, const Tensor& de) {
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    std::vector<double> parts(de.defined() ? layer.rows : 0);
    cpu::norm_gradient(layer, grad.const_data_ptr<T>(), dv.defined() ? dv.mutable_data_ptr<T>() : nullptr,
                       de.defined() ? parts.data() : nullptr);
    if (de.defined()) excitability_gradient<T>(parts, de);
  }

  template <class T>
  static void sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern, const Tensor& result) {
    const Matrix<cpu::Activations> dy(rows), x(columns);
    cpu::Columns<T> c{};
    c.samples = samples_of(columns);
    c.inputs = columns.size(-1);
    c.outputs = rows.size(-1);
    c.connections = result.size(0);
    c.dy = dy.activations;
    c.x = x.activations;
    c.columns = columns_of<cpu::View>(pattern);
    c.gradient = result.mutable_data_ptr<T>();
    run_columns(c);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { LayerOps<Backend>::register_in(m); }

}  // namespace dendnorm::ops
