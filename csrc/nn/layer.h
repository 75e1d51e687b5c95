// What the linear layer and the convolution share beyond the public header.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>
#include <optional>

#include "core/norm.h"
#include "nn/checks.h"
#include "nn/dendnorm.h"
#include "ops/call.h"
#include "ops/layer.h"

namespace dendnorm::nn {

inline ops::Pattern pattern_of(const SparseLinearImpl& layer) {
  return {layer.ccol_indices, layer.row_indices, layer.crow_indices, layer.col_indices, layer.perm};
}

inline dendnorm::Norm norm_of(const SparseLinearImpl& layer) {
  const NormOptions& options = layer.norm->options;
  return {options.a(), options.b(), options.p()};
}

// A torch layer: those draw their first weights, which nobody sees here.
template <class Module, class Options>
Module undrawn(const Options& options) {
  auto generator = at::detail::getDefaultCPUGenerator();
  at::Tensor state;
  {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    state = generator.get_state();
  }
  Module module(options);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
  return module;
}

// The largest weights of a dense layer as a matrix (M, N), and the options of a layer that has them.
struct Largest {
  SparseLinearOptions options;
  torch::Tensor ccol, row, effective;
};

inline Largest largest_of(const torch::Tensor& matrix, const char* name, std::optional<double> density,
                          const NormChoice& norm, bool bias) {
  std::optional<int64_t> count;
  if (density.has_value()) count = counted(density, std::nullopt, matrix.numel());
  const auto [ccol, row, effective] = ops::call_largest_connections(matrix, count, name);
  const auto dtype = matrix.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  auto options = SparseLinearOptions(matrix.size(1), matrix.size(0)).nnz(row.numel()).norm(norm).bias(bias);
  options.device(matrix.device()).dtype(dtype);
  return {options, ccol, row, effective};
}

// What trains, and whether it is training, as the dense layer has it.
template <class Dense>
void take_modes(SparseLinearImpl& layer, const Dense& dense) {
  layer.weight.requires_grad_(dense.weight.requires_grad());
  if (dense.bias.defined()) layer.bias.requires_grad_(dense.bias.requires_grad());
  layer.train(dense.is_training());
}

}  // namespace dendnorm::nn
