#include "ops/require.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

namespace dendnorm::ops {
namespace {

// "a, b or c"
std::string listed(std::initializer_list<at::ScalarType> types) {
  std::string text;
  for (const at::ScalarType& type : types) {
    if (!text.empty()) text += &type + 1 == types.end() ? " or " : ", ";
    text += dtype_name(type);
  }
  return text;
}

}  // namespace

std::string dtype_name(at::ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

std::string shape_text(const at::Tensor& tensor) {
  std::ostringstream text;
  for (const c10::SymInt& size : tensor.sym_sizes()) text << (text.tellp() > 0 ? ", " : "(") << size;
  return tensor.dim() == 0 ? "()" : text.str() + (tensor.dim() == 1 ? ",)" : ")");
}

void require_dtype(const char* op, std::string_view name, const at::Tensor& tensor,
                   std::initializer_list<at::ScalarType> expected, std::string_view where) {
  TORCH_CHECK(std::find(expected.begin(), expected.end(), tensor.scalar_type()) != expected.end(), "dendnorm::", op,
              ": ", name, " must have dtype ", listed(expected), where, ", got ", dtype_name(tensor.scalar_type()));
}

void require_dtype_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                      const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "dendnorm::", op, ": ", name, " must have dtype ",
              dtype_name(like.scalar_type()), ", got ", dtype_name(tensor.scalar_type()), ", where ", like_name,
              " has ", dtype_name(like.scalar_type()));
}

void require_device_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                       const at::Tensor& like) {
  TORCH_CHECK(tensor.device() == like.device(), "dendnorm::", op, ": ", name, " must be on the device of ", like_name,
              ", ", like.device(), ", got ", tensor.device());
}

void require_shape_of(const char* op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                      const at::Tensor& like) {
  TORCH_CHECK(tensor.sym_sizes().equals(like.sym_sizes()), "dendnorm::", op, ": ", name, " must have ", like_name,
              like_name.ends_with('s') ? "' shape, " : "'s shape, ", like.sym_sizes(), ", got ", tensor.sym_sizes());
}

void require_one_dimension(const char* op, std::string_view name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 1, "dendnorm::", op, ": ", name, " must be one-dimensional, got shape ",
              tensor.sym_sizes());
}

void require_contiguous(const char* op, std::string_view name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "dendnorm::", op, ": ", name, " must be contiguous, got stride ",
              tensor.sym_strides());
}

void require_one_for_each(const char* op, std::string_view name, const at::Tensor& tensor, const c10::SymInt& count,
                          std::string_view of) {
  TORCH_CHECK(tensor.sym_size(0) == count, "dendnorm::", op, ": ", name, " must have one entry for each of the ", count,
              " ", of, ", got ", tensor.sym_size(0));
}

void require_count(const char* op, std::int64_t k, const c10::SymInt& most, std::string_view of) {
  TORCH_CHECK(k >= 0 && most >= k, "dendnorm::", op, ": k must be in [0, ", of, "] = [0, ", most, "], got ", k);
}

}  // namespace dendnorm::ops
