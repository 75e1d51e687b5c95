// What the linear layer and the convolution share beyond the public header.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "core/norm.h"
#include "nn/dendnorm.h"
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

}  // namespace dendnorm::nn
