#include "ops/checks.h"

#include <ATen/ops/empty.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace dendnorm::ops {
namespace {

bool is_16_bit(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

void check_index_tensor(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& weight) {
  TORCH_CHECK(tensor.scalar_type() == at::kInt, "dendnorm::", op, ": ", name, " must have dtype int32, got ",
              tensor.scalar_type());
  TORCH_CHECK(tensor.dim() == 1, "dendnorm::", op, ": ", name, " must be one-dimensional, got shape ",
              tensor.sym_sizes());
  TORCH_CHECK(tensor.device() == weight.device(), "dendnorm::", op, ": ", name, " must be on weight's device, ",
              weight.device(), ", got ", tensor.device());
  TORCH_CHECK(tensor.is_contiguous(), "dendnorm::", op, ": ", name, " must be contiguous, got stride ",
              tensor.sym_strides());
}

void check_length(const char* op, const char* name, const at::Tensor& tensor, const c10::SymInt& nnz) {
  TORCH_CHECK(tensor.sym_size(0) == nnz, "dendnorm::", op, ": ", name, " must have one entry for each of the ", nnz,
              " connections of weight, got ", tensor.sym_size(0));
}

}  // namespace

Norm checked_norm(const char* op, double a, double b, double p) {
  TORCH_CHECK(std::isfinite(a), "dendnorm::", op, ": a must be a finite number, got ", a);
  TORCH_CHECK(std::isfinite(b), "dendnorm::", op, ": b must be a finite number, got ", b);
  TORCH_CHECK(std::isfinite(p) && p >= 1, "dendnorm::", op, ": p must be a finite number of at least 1, got ", p);
  return {a, b, p};
}

Sizes check_layer(const char* op, const at::Tensor& weight, const OptionalTensor& excitability,
                  const Pattern& pattern) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble, "dendnorm::", op,
              ": weight must have dtype float32 or float64, got ", weight.scalar_type());
  TORCH_CHECK(weight.dim() == 1, "dendnorm::", op, ": weight must have shape (nnz,), got ", weight.sym_sizes());
  check_index_tensor(op, "ccol_indices", pattern.ccol_indices, weight);
  check_index_tensor(op, "row_indices", pattern.row_indices, weight);
  check_index_tensor(op, "crow_indices", pattern.crow_indices, weight);
  check_index_tensor(op, "col_indices", pattern.col_indices, weight);
  check_index_tensor(op, "perm", pattern.perm, weight);
  TORCH_CHECK(pattern.ccol_indices.sym_size(0) >= 1, "dendnorm::", op,
              ": ccol_indices must have in_features + 1 entries, got none");
  TORCH_CHECK(pattern.crow_indices.sym_size(0) >= 1, "dendnorm::", op,
              ": crow_indices must have out_features + 1 entries, got none");
  const c10::SymInt nnz = weight.sym_size(0);
  check_length(op, "row_indices", pattern.row_indices, nnz);
  check_length(op, "col_indices", pattern.col_indices, nnz);
  check_length(op, "perm", pattern.perm, nnz);
  Sizes sizes{pattern.ccol_indices.sym_size(0) - 1, pattern.crow_indices.sym_size(0) - 1, nnz};
  if (given(excitability)) {
    const at::Tensor& e = *excitability;
    TORCH_CHECK(e.scalar_type() == weight.scalar_type(), "dendnorm::", op, ": excitability must have weight's dtype, ",
                weight.scalar_type(), ", got ", e.scalar_type());
    TORCH_CHECK(e.device() == weight.device(), "dendnorm::", op, ": excitability must be on weight's device, ",
                weight.device(), ", got ", e.device());
    const bool shared = e.dim() == 0 || (e.dim() == 1 && e.sym_size(0) == 1);
    TORCH_CHECK(shared || (e.dim() == 1 && e.sym_size(0) == sizes.outputs), "dendnorm::", op,
                ": excitability must have shape (), (1,) or (out_features,) = (", sizes.outputs, ",), got ",
                e.sym_sizes());
  }
  return sizes;
}

void check_activations(const char* op, const char* name, const at::Tensor& activations, const c10::SymInt& size,
                       const at::Tensor& weight) {
  TORCH_CHECK(activations.dim() >= 1 && activations.sym_size(-1) == size, "dendnorm::", op, ": ", name,
              " must have shape (*, ", size, "), got ", activations.sym_sizes());
  TORCH_CHECK(activations.device() == weight.device(), "dendnorm::", op, ": ", name, " must be on weight's device, ",
              weight.device(), ", got ", activations.device());
  const at::ScalarType type = activations.scalar_type(), values = weight.scalar_type();
  TORCH_CHECK(type == values || (values == at::kFloat && is_16_bit(type)), "dendnorm::", op, ": ", name,
              values == at::kFloat ? " must have dtype float32, bfloat16 or float16 where weight has float32, got "
                                   : " must have dtype float64 where weight has float64, got ",
              type);
}

void check_same_leading(const char* op, const char* name, const at::Tensor& activations, const char* other_name,
                        const at::Tensor& other) {
  const auto mine = activations.sym_sizes(), theirs = other.sym_sizes();
  TORCH_CHECK(mine.slice(0, mine.size() - 1).equals(theirs.slice(0, theirs.size() - 1)), "dendnorm::", op, ": ", name,
              " must have the leading sizes of ", other_name, ", ", theirs, ", got ", mine);
  TORCH_CHECK(activations.scalar_type() == other.scalar_type(), "dendnorm::", op, ": ", name,
              " must have the dtype of ", other_name, ", ", other.scalar_type(), ", got ", activations.scalar_type());
}

void check_bias(const char* op, const at::Tensor& bias, const c10::SymInt& size, const at::Tensor& weight) {
  TORCH_CHECK(bias.dim() == 1 && bias.sym_size(0) == size, "dendnorm::", op,
              ": bias must have shape (out_features,) = (", size, ",), got ", bias.sym_sizes());
  TORCH_CHECK(bias.scalar_type() == weight.scalar_type(), "dendnorm::", op, ": bias must have weight's dtype, ",
              weight.scalar_type(), ", got ", bias.scalar_type());
  TORCH_CHECK(bias.device() == weight.device(), "dendnorm::", op, ": bias must be on weight's device, ",
              weight.device(), ", got ", bias.device());
}

void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& weight) {
  TORCH_CHECK(grad.dim() == 1 && grad.sym_size(0) == weight.sym_size(0), "dendnorm::", op,
              ": grad must have weight's shape, ", weight.sym_sizes(), ", got ", grad.sym_sizes());
  TORCH_CHECK(grad.scalar_type() == weight.scalar_type(), "dendnorm::", op, ": grad must have weight's dtype, ",
              weight.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK(grad.device() == weight.device(), "dendnorm::", op, ": grad must be on weight's device, ",
              weight.device(), ", got ", grad.device());
}

at::Tensor empty_sampled_product(const at::Tensor& rows, const at::Tensor& columns, const Pattern& pattern) {
  const char* op = "sampled_product";
  const at::ScalarType type = columns.scalar_type();
  TORCH_CHECK(type == at::kDouble || type == at::kFloat || is_16_bit(type), "dendnorm::", op,
              ": columns must have dtype float32, float64, bfloat16 or float16, got ", type);
  const at::Tensor result =
      at::empty_symint({pattern.row_indices.sym_numel()}, columns.options().dtype(is_16_bit(type) ? at::kFloat : type));
  const Sizes sizes = check_layer(op, result, std::nullopt, pattern);
  check_activations(op, "rows", rows, sizes.outputs, result);
  check_activations(op, "columns", columns, sizes.inputs, result);
  check_same_leading(op, "rows", rows, "columns", columns);
  return result;
}

bool is_feature_major(const at::Tensor& activations) {
  if (activations.dim() != 2) return false;
  const auto sizes = activations.sym_sizes(), strides = activations.sym_strides();
  return strides[0] == 1 && strides[1] != 1 && sizes[0] > 1 && sizes[1] > 1 && strides[1] >= sizes[0];
}

at::Tensor empty_activations(const at::Tensor& like, const c10::SymInt& size) {
  if (is_feature_major(like)) {
    return at::empty_symint({size, like.sym_size(0)}, like.options()).t();
  }
  c10::SymDimVector sizes(like.sym_sizes().begin(), like.sym_sizes().end());
  sizes.back() = size;
  return at::empty_symint(sizes, like.options());
}

}  // namespace dendnorm::ops
