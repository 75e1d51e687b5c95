// What the layers share that hand tensors to csrc/cpu.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <numeric>
#include <vector>

#include "core/pattern.h"
#include "cpu/norm.h"
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

template <class T>
cpu::Layer<T> threaded_layer(const at::Tensor& weight, const at::Tensor& excitability, const Pattern& pattern,
                             const Norm& norm) {
  auto layer = layer_of<cpu::Layer<T>, T>(weight, excitability, pattern, norm);
  layer.threads = threads();
  return layer;
}

// Sums per-row parts of dC/de to e's own shape.
template <class T>
void excitability_gradient(const std::vector<double>& parts, const at::Tensor& gradient) {
  T* data = gradient.mutable_data_ptr<T>();
  if (is_per_row(gradient)) {
    for (std::size_t i = 0; i < parts.size(); ++i) data[i] = static_cast<T>(parts[i]);
  } else {
    data[0] = static_cast<T>(std::accumulate(parts.begin(), parts.end(), 0.0));
  }
}

// dC/dv and dC/de, where they are defined, of dC/dw.
template <class T>
void raw_gradients(const cpu::Layer<T>& layer, const T* grad, const at::Tensor& dv, const at::Tensor& de) {
  std::vector<double> parts(de.defined() ? layer.rows : 0);
  cpu::norm_gradient(layer, grad, dv.defined() ? dv.mutable_data_ptr<T>() : nullptr,
                     de.defined() ? parts.data() : nullptr);
  if (de.defined()) excitability_gradient<T>(parts, de);
}

}  // namespace dendnorm::ops
