// Hands tensors to csrc/cpu.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "cpu/plan.h"
#include "ops/kept_rows.h"
#include "ops/layer_on_cpu.h"
#include "ops/layer_ops.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// The factors of all rows and the memory that holds them; null factors where every factor is 1. `rows` may be null
// where b = 0.
template <class T>
struct RowFactors {
  Tensor memory;
  cpu::Factors<T> factors;

  RowFactors(const cpu::Layer<T>& layer, const Row* rows) {
    memory = at::empty({2, layer.rows}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    T* first = memory.mutable_data_ptr<T>();
    const bool wide = cpu::row_factors(layer, rows, first, first + layer.rows);
    factors = {first, wide ? first + layer.rows : nullptr};
  }
};

// The factor of every row as row[i] times `scale`, which is taken into dY as it is packed, where cpu::row_scales finds
// that usable. `whole`: all in one; then no factor is 0 where a row has connections.
template <class T>
struct RowScale {
  bool usable = false;
  std::unique_ptr<T[]> row;
  T scale = 1;

  RowScale() = default;
  RowScale(const cpu::Layer<T>& layer, const Row* rows, bool whole) : row(new T[static_cast<std::size_t>(layer.rows)]) {
    usable = cpu::row_scales(layer, rows, whole, row.get(), &scale);
  }
};

template <class T>
void run_columns(cpu::Columns<T>& c) {
  c.threads = threads();
  with_kernels<T>(c.dy, c.samples, [&](const auto& kernels) {
    const cpu::ColumnsPlan plan = cpu::plan_columns(c, kernels.widths, kernels.kSlabBytes);
    kernels.columns(c, plan, Workspace(plan.workspace_bytes).data());
  });
}

struct Backend {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void check_views(const char* op, const Pattern& pattern) { check_same_pattern(op, pattern); }

  template <class T>
  static void forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& excitability,
                      const Pattern& pattern, const Norm& norm, const Tensor& output, Tensor* kept = nullptr) {
    prefer_large_pages(output);
    const Matrix x(input), y(output);
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    std::optional<RowFactors<T>> factors;
    if (scales(layer)) {
      const Tensor rows = norm.b != 0 ? measured(layer) : Tensor();
      factors.emplace(layer, rows_in(rows));
      if (kept != nullptr) *kept = rows;
    }
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
    if (factors) f.factors = factors->factors;
    f.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    run_forward(f);
  }

  template <class T>
  static void backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& excitability,
                       const Pattern& pattern, const Norm& norm, const Wanted& wanted, const Gradients& gradients,
                       const Tensor& kept = {}) {
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
    const bool scaled = scales(layer) && (wanted.input || wanted.values());
    const bool needed = (scaled && norm.b != 0) || wanted.rows_pass();
    const Tensor memory = needed && !kept.defined() ? measured(layer) : kept;
    const Row* rows = rows_in(memory);
    const bool shared = layer.norm.b == 0 && !layer.excitability.per_row;
    const bool packed_scaled = scaled && !cpu::stay_bfloat16(c.dy, c.samples);
    const RowScale<T> row_scale = packed_scaled ? RowScale<T>(layer, rows, !shared) : RowScale<T>();
    std::optional<RowFactors<T>> factors;
    std::vector<double> dot_weights, dots;
    if (wanted.dots()) {
      dots.resize(c.inputs);
      c.dots = dots.data();
    }
    if (row_scale.usable) {
      c.row_scale = row_scale.row.get();
      c.scale = row_scale.scale;
    } else {
      if (scaled && wanted.factors()) {
        factors.emplace(layer, rows);
        c.factors = factors->factors;
      }
      if (wanted.dots()) {
        dot_weights.resize(c.outputs);
        cpu::inverse_ds(layer, rows, dot_weights.data());
        c.dot_weights = dot_weights.data();
      }
    }
    if (wanted.bias) c.bias_gradient = gradients.bias.mutable_data_ptr<T>();
    run_columns(c);

    if (wanted.rows_pass()) {
      raw_gradients(layer, rows, row_scale.usable, c.gradient, gradients.weight, gradients.excitability);
    } else if (wanted.dots()) {
      excitability_gradient<T>(dots, gradients.excitability);
    }
  }

  template <class T>
  static void effective_weight(const Tensor& weight, const Tensor& excitability, const Pattern& pattern,
                               const Norm& norm, const Tensor& result) {
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    cpu::effective_weight(layer, result.mutable_data_ptr<T>());
  }

  template <class T>
  static void norm_gradient(const Tensor& grad, const Tensor& weight, const Tensor& excitability,
                            const Pattern& pattern, const Norm& norm, const Tensor& dv, const Tensor& de) {
    const cpu::Layer<T> layer = threaded_layer<T>(weight, excitability, pattern, norm);
    raw_gradients(layer, grad.const_data_ptr<T>(), dv, de);
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

namespace {

Tensor forward_that_keeps(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm, Tensor& rows) {
  return LayerOps<Backend>::forward(input, weight, bias, excitability, pattern, norm, &rows);
}

Tensor4 backward_with_kept(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                           const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                           std::array<bool, 4> mask, const Tensor& rows) {
  RECORD_FUNCTION("dendnorm::sparse_linear_backward", c10::ArrayRef<const c10::IValue>{});
  return LayerOps<Backend>::backward(grad_output, input, weight, excitability, pattern, norm, mask, rows);
}

}  // namespace

RowKeeper keeps_on_cpu{forward_that_keeps, backward_with_kept}, keeps_on_cuda;

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { LayerOps<Backend>::register_in(m); }

}  // namespace dendnorm::ops
