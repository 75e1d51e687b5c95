// What the ops require of their arguments, in the words of their messages: each function throws a c10::Error that names
// the op, the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace dendnorm::ops {

using OptionalTensor = std::optional<at::Tensor>;

inline bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }
inline at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); }

inline bool is_16_bit(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

// As Python names it: "float32".
std::string dtype_name(at::ScalarType type);

// And a shape: "(3,)".
std::string shape_text(const at::Tensor& tensor);

// One of some dtypes; `where` says when it is these.
void require_dtype(const char* op, std::string_view name, const at::Tensor& tensor,
                   std::initializer_list<at::ScalarType> expected, std::string_view where = {});

// The dtype, the device or the shape of another argument.
void require_dtype_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                      const at::Tensor& like);
void require_device_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                       const at::Tensor& like);
void require_shape_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                      const at::Tensor& like);

void require_one_dimension(const char* op, std::string_view name, const at::Tensor& tensor);
void require_contiguous(const char* op, std::string_view name, const at::Tensor& tensor);

// (count,), where there are `count` of what `of` names: "connections of weight".
void require_one_for_each(const char* op, std::string_view name, const at::Tensor& tensor, const c10::SymInt& count,
                          std::string_view of);

// k in [0, most], where `most` is the number that `of` names.
void require_count(const char* op, std::int64_t k, const c10::SymInt& most, std::string_view of);

}  // namespace dendnorm::ops
