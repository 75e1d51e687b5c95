// Whether two tensors are a compressed pattern.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace dendnorm::ops {

struct PatternNames {
  std::string_view compressed = "ccol_indices";
  std::string_view indices = "row_indices";
};

// What can be seen without reading them: dtypes, dimensions, devices and the number of rows or columns.
void check_pattern_tensors(const char* op, const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size,
                           const char* size_name, PatternNames names);

// And what they hold; contiguous CPU tensors.
void check_pattern_content(const char* op, const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size,
                           PatternNames names);

}  // namespace dendnorm::ops
