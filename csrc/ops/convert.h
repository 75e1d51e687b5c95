// Patterns and weights from what users have, for every device. What is wrong with it is a c10::ValueError or
// c10::TypeError in their words.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <tuple>

#include "ops/pattern.h"

namespace dendnorm::ops {

// Indices of int32 or int64 as contiguous int32 with memory of their own, without wrapping what does not fit.
at::Tensor as_index(std::string_view name, const at::Tensor& values);

// Throws where they are no compressed pattern of `segments` segments with indices below `size`.
void check_view(const at::Tensor& compressed, const at::Tensor& indices, std::int64_t segments, std::int64_t size,
                PatternNames names);

// The other view of a sound pattern, and for each of its entries the position in this one.
std::tuple<at::Tensor, at::Tensor, at::Tensor> transposed(const at::Tensor& compressed, const at::Tensor& indices,
                                                          std::int64_t size);

}  // namespace dendnorm::ops
