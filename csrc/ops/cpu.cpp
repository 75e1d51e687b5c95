// Hands tensors to csrc/cpu.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "cpu/plan.h"
#include "ops/layer_ops.h"
#include "ops/layer_on_cpu.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// The factors of all rows and the memory that holds them; null factors where every factor is 1.
template <class T>
struct RowFactors {
  Tensor memory;
  cpu::Factors<T> factors;

  explicit RowFactors(const cpu::Layer<T>& layer) {
    if (!scales(layer)) return;
    memory = at::empty({2, layer.rows}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    T* first = memory.mutable_data_ptr<T>();
    const bool wide = cpu::row_factors(layer, first, first + layer.rows);
    factors = {first, wide ? first + layer.rows : nullptr};
  }
};

// 1 / D of a row where b = 0.
template <class T>
double inverse_d(const cpu::Layer<T>& layer, std::int64_t row) {
  return measure_row(layer.norm, layer.view.start[row + 1] - layer.view.start[row], NoValues{}).inverse_d;
}

// The factors of all rows as 1 / D times one number for all. Usable where that is what they are and both are of a size
// that leaves ordinary activations and gradients in the range of T.
template <class T>
struct RowScale {
  bool usable = false;
  std::unique_ptr<T[]> data;
  T scale = 1;

  RowScale() = default;
  explicit RowScale(const cpu::Layer<T>& layer) {
    constexpr double kSmall = 0x1p-40, kLarge = 0x1p40;
    if (layer.norm.b != 0 || layer.excitability.per_row) return;
    const double e = layer.excitability.of(0);
    if (e != 0 && !(std::fabs(e) > kSmall && std::fabs(e) < kLarge)) return;
    scale = static_cast<T>(e);
    data.reset(new T[static_cast<std::size_t>(layer.rows)]);
    for (std::int64_t i = 0; i < layer.rows; ++i) {
      const double row = inverse_d(layer, i);
      if (row != 0 && !(row > kSmall && row < kLarge)) return;
      data[i] = static_cast<T>(row);
    }
    usable = true;
  }
};

template <class T>
void run_forward(cpu::Forward<T>& f) {
  const auto& kernels = cpu::kernels<T>();
  f.threads = threads();
  const cpu::ForwardPlan plan = cpu::plan_forward(f, kernels.widths);
  kernels.forward(f, plan, Workspace(plan.workspace_bytes).data());
}

template <class T>
void run_columns(cpu::Columns<T>& c) {
  const auto& kernels = cpu::kernels<T>();
  c.threads = threads();
  const cpu::ColumnsPlan plan = cpu::plan_columns(c, kernels.widths);
  kernels.columns(c, plan, Workspace(plan.workspace_bytes).data());
}

struct Backend {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void check_views(const char* op, const Pattern& pattern) { check_same_pattern(op, pattern); }

  template <class T>
  static void forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& excitability,
                      const Pattern& pattern, const Norm& norm, const Tensor& output) {
    prefer_large_pages(output);
    const Matrix x(input), y(output);
    const RowFactors<T> factors(threaded_layer<T>(weight, excitability, pattern, norm));
    cpu::Forward<T> f{};
    f.samples = samples_of(input);
    f.inputs = input.size(-1);
    f.outputs = output.size(-1);
    f.connections = weight.size(0);
    f.x = x.activations;
    f.y = y.activations;
    f.rows = rows_of(pattern);
    f.columns = columns_of(pattern);
    f.values = weight.const_data_ptr<T>();
    f.factors = factors.factors;
    f.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    run_forward(f);
  }

  template <class T>
  static void backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& excitability,
                       const Pattern& pattern, const Norm& norm, const Wanted& wanted, const Gradients& gradients) {
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    const Matrix dy(grad_output), x(input);
    Matrix dx;
    cpu::Columns<T> c{};
    c.samples = samples_of(input);
    c.inputs = input.size(-1);
    c.outputs = grad_output.size(-1);
    c.connections = weight.size(0);
    c.dy = dy.activations;
    c.x = x.activations;
    if (wanted.input) {
      prefer_large_pages(gradients.input);
      dx = Matrix(gradients.input);
      c.dx = dx.activations;
    }
    c.columns = columns_of(pattern);
    c.values = layer.values;
    const Tensor gradient = values_gradient(wanted, gradients, weight);
    if (wanted.values()) {
      prefer_large_pages(gradient);
      c.gradient = gradient.mutable_data_ptr<T>();
    }
    c.finish = wanted.finish();
    const bool applies = scales(layer) && !wanted.rows_pass() && (wanted.input || wanted.values());
    const RowScale<T> row_scale = applies ? RowScale<T>(layer) : RowScale<T>();
    std::optional<RowFactors<T>> factors;
    std::vector<double> dot_weights, dots;
    if (wanted.dots()) {
      dots.resize(c.inputs);
      c.dots = dots.data();
    }
    if (row_scale.usable) {
      c.row_scale = row_scale.data.get();
      c.scale = row_scale.scale;
    } else {
      if (wanted.factors()) {
        factors.emplace(layer);
        c.factors = factors->factors;
      }
      if (wanted.dots()) {
        dot_weights.resize(c.outputs);
        for (std::int64_t i = 0; i < c.outputs; ++i) dot_weights[i] = inverse_d(layer, i);
        c.dot_weights = dot_weights.data();
      }
    }
    if (wanted.bias) c.bias_gradient = gradients.bias.mutable_data_ptr<T>();
    run_columns(c);

    if (wanted.rows_pass()) {
      raw_gradients(layer, c.gradient, gradients.weight, gradients.excitability);
    } else if (wanted.dots()) {
      excitability_gradient<T>(dots, gradients.excitability);
    }
  }

  template <class T>
  static void effective_weight(const Tensor& weight, const Tensor& excitability, const Pattern& pattern,
                               const Norm& norm, const Tensor& result) {
    cpu::effective_weight(threaded_layer<T>(weight, excitability, pattern, norm), result.mutable_data_ptr<T>());
  }

  template <class T>
  static void norm_gradient(const Tensor& grad, const Tensor& weight, const Tensor& excitability,
                            const Pattern& pattern, const Norm& norm, const Tensor& dv, const Tensor& de) {
    raw_gradients(threaded_layer<T>(weight, excitability, pattern, norm), grad.const_data_ptr<T>(), dv, de);
  }

  template <class T>
  static void sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern, const Tensor& result) {
    const Matrix dy(rows), x(columns);
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
};

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { LayerOps<Backend>::register_in(m); }

}  // namespace dendnorm::ops
