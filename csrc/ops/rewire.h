// What the ops of rewiring accept, for every device, and how they say what is wrong with values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "core/status.h"
#include "ops/require.h"

namespace dendnorm::ops {

// Each checks what can be seen without reading values, and gives the op's uninitialised result.

at::Tensor empty_weakest(const at::Tensor& score, std::int64_t k, const OptionalTensor& status);

std::tuple<at::Tensor, at::Tensor, at::Tensor> empty_excise(const at::Tensor& ccol_indices,
                                                            const at::Tensor& row_indices, const at::Tensor& dropped,
                                                            std::int64_t k, const OptionalTensor& status);

at::Tensor empty_positions_result(const at::Tensor& ccol_indices, const at::Tensor& row_indices, std::int64_t rows,
                                  std::int64_t k, std::int64_t seed, std::int64_t step, std::int64_t layer);

std::tuple<at::Tensor, at::Tensor, at::Tensor> empty_replacement(const at::Tensor& ccol_indices,
                                                                 const at::Tensor& row_indices, std::int64_t rows,
                                                                 const at::Tensor& dropped, const at::Tensor& keys,
                                                                 const OptionalTensor& status);

at::Tensor empty_normal(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer, at::ScalarType dtype,
                        at::Device device);

void check_carry(const at::Tensor& values, const at::Tensor& source, const at::Tensor& fill,
                 const OptionalTensor& status);
void check_assign(const at::Tensor& values, const at::Tensor& new_values, const OptionalTensor& status);

// The largest number of rows: for what reads a pattern without using how many it has.
constexpr std::int64_t kAnyRows = 0x7FFFFFFE;

// That every source is in [-1, n) and that there is a fill for each -1; contiguous CPU tensors.
void check_source(const at::Tensor& source, const at::Tensor& fill);

// values = result for any strides; autograd is told that what it may have saved has changed.
void overwrite(at::Tensor& values, const at::Tensor& result);

// Raises what a status tells, if it tells of a fault. A tensor on a GPU is waited for.
void raise_fault(const Status& status);
void raise_fault(const at::Tensor& status);

}  // namespace dendnorm::ops
