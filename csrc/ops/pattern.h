// Whether two tensors are a compressed pattern.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <tuple>

namespace dendnorm::ops {

struct PatternNames {
  std::string_view compressed = "ccol_indices";
  std::string_view indices = "row_indices";
};

// What can be seen without reading them: dtypes, dimensions, devices and the number of rows or columns.
void check_pattern_tensors(const char* op, const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size,
                           const char* size_name, PatternNames names);

// What transpose_pattern accepts, and its uninitialised result.
std::tuple<at::Tensor, at::Tensor, at::Tensor> empty_transpose(const at::Tensor& compressed, const at::Tensor& indices,
                                                               std::int64_t size);

// What pattern_mark accepts, and its uninitialised result.
at::Tensor empty_mark(const at::Tensor& ccol_indices, const at::Tensor& row_indices);

// And what they hold; contiguous CPU tensors.
void check_pattern_content(const char* op, const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size,
                           PatternNames names);

// The same for CUDA tensors; it waits for the device.
void check_pattern_content_cuda(const char* op, const at::Tensor& compressed, const at::Tensor& indices,
                                std::int64_t size, PatternNames names);

}  // namespace dendnorm::ops
