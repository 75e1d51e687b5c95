// Patterns as the layer and the rewiring use them: column order, any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "nn/dendnorm.h"

namespace dendnorm::nn {

// The device on which to call an op for tensors of `device`: that one, or the CPU where this build has no kernel for
// it. Patterns and draws have the same bits on all of them.
at::Device home_of(const char* op, at::Device device);

// ccol_indices and row_indices from ascending keys col * rows + row, int64.
std::pair<at::Tensor, at::Tensor> pattern_of_keys(const at::Tensor& keys, int64_t rows, int64_t cols);

Edges edges_of(const at::Tensor& ccol_indices, const at::Tensor& row_indices);

// The other view of a checked pattern, and for each of its entries the position in this one.
std::tuple<at::Tensor, at::Tensor, at::Tensor> transposed(const at::Tensor& compressed, const at::Tensor& indices,
                                                          int64_t size);

// The numbers that tell a pattern from others, where its tensors are.
at::Tensor mark_of(const at::Tensor& ccol_indices, const at::Tensor& row_indices);

// Indices of int32 or int64 as contiguous int32, without wrapping what does not fit.
at::Tensor as_index(const char* name, const at::Tensor& values);

// Throws c10::ValueError where they are no compressed pattern of `segments` segments with indices below `size`.
void check_compressed(const at::Tensor& compressed, const at::Tensor& indices, int64_t segments, int64_t size,
                      const char* compressed_name, const char* indices_name);

}  // namespace dendnorm::nn
