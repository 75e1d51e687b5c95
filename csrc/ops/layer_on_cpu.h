// What the layers share that hand tensors to csrc/cpu.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <vector>

#include "core/pattern.h"
#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "cpu/plan.h"
#include "ops/layer.h"
#include "ops/layer_ops.h"
#include "ops/on_cpu.h"

namespace dendnorm::ops {

// Refuses views of different patterns.
inline void check_same_pattern(const char* op, const Pattern& p) {
  const View columns = columns_of(p), rows = rows_of(p);
  TORCH_CHECK_VALUE(views_agree(columns.start, p.ccol_indices.size(0) - 1, columns.index, rows.start,
                                p.crow_indices.size(0) - 1, rows.index, rows.perm, p.perm.size(0)),
                    "dendnorm::", op,
                    ": crow_indices, col_indices and perm must be the row view of ccol_indices and row_indices, got "
                    "views of different patterns; a compiled or exported graph keeps the row view: call the layer "
                    "once outside of it after its pattern was written, or layer.load_state_dict");
}

// run(kernels) with those for T or, where the activations stay bfloat16, for these.
template <class T, class F>
void with_kernels(const Activations& activations, std::int64_t samples, F run) {
  if constexpr (sizeof(T) == 4) {
    if (cpu::stay_bfloat16(activations, samples)) return run(cpu::chosen_kernels_bf16());
  }
  run(cpu::kernels<T>());
}

template <class T>
void run_forward(cpu::Forward<T>& f) {
  f.threads = threads();
  with_kernels<T>(f.x, f.samples, [&](const auto& kernels) {
    const cpu::ForwardPlan plan = cpu::plan_forward(f, kernels.widths, kernels.kSlabBytes);
    kernels.forward(f, plan, Workspace(plan.workspace_bytes).data());
  });
}

template <class T>
cpu::Layer<T> threaded_layer(const at::Tensor& weight, const at::Tensor& excitability, const Pattern& pattern,
                             const Norm& norm) {
  auto layer = layer_of<cpu::Layer<T>, T>(weight, excitability, pattern, norm);
  layer.threads = threads();
  layer.row = pattern.row_indices.const_data_ptr<std::int32_t>();
  return layer;
}

// The rows of a layer: (M, 2), float64.
template <class T>
at::Tensor measured(const cpu::Layer<T>& layer) {
  static_assert(sizeof(Row) == 2 * sizeof(double));
  at::Tensor rows = at::empty({layer.rows, 2}, at::TensorOptions().dtype(at::kDouble));
  cpu::measure_rows(layer, reinterpret_cast<Row*>(rows.mutable_data_ptr<double>()));
  return rows;
}

inline const Row* rows_in(const at::Tensor& measured) {
  return measured.defined() ? reinterpret_cast<const Row*>(measured.const_data_ptr<double>()) : nullptr;
}

// Sums per-row parts of dC/de to e's own shape.
template <class T>
void excitability_gradient(const std::vector<double>& parts, const at::Tensor& gradient) {
  T* data = gradient.mutable_data_ptr<T>();
  if (is_per_row(gradient)) {
    for (std::size_t i = 0; i < parts.size(); ++i) data[i] = static_cast<T>(parts[i]);
  } else {
    double sums[8] = {};  // an addition waits for the one before it
    for (std::size_t i = 0; i < parts.size(); ++i) sums[i % 8] += parts[i];
    data[0] = static_cast<T>(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  }
}

// dC/dv and dC/de, where they are defined, of dC/dw or, `scaled`, of that times the factors of the rows.
template <class T>
void raw_gradients(const cpu::Layer<T>& layer, const Row* rows, bool scaled, const T* grad, const at::Tensor& dv,
                   const at::Tensor& de) {
  std::vector<double> parts(de.defined() ? layer.rows : 0);
  cpu::norm_gradient(layer, rows, scaled, grad, dv.defined() ? dv.mutable_data_ptr<T>() : nullptr,
                     de.defined() ? parts.data() : nullptr);
  if (de.defined()) excitability_gradient<T>(parts, de);
}

template <class T>
void raw_gradients(const cpu::Layer<T>& layer, const T* grad, const at::Tensor& dv, const at::Tensor& de) {
  raw_gradients(layer, rows_in(measured(layer)), false, grad, dv, de);
}

}  // namespace dendnorm::ops
