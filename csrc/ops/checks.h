// What the ops accept, checked once at the boundary, for every device and for Meta.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

#include "core/norm.h"

namespace dendnorm::ops {

// The two views of a pattern; see library.cpp.
struct Pattern {
  const at::Tensor& ccol_indices;
  const at::Tensor& row_indices;
  const at::Tensor& crow_indices;
  const at::Tensor& col_indices;
  const at::Tensor& perm;
};

using OptionalTensor = std::optional<at::Tensor>;

inline bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }
inline at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); }

struct Sizes {
  c10::SymInt inputs, outputs, connections;
};

// a, b and p as a member of the family.
Norm checked_norm(const char* op, double a, double b, double p);

// weight (nnz,), excitability () or (1,) or (M,), and the pattern's five tensors: shapes, dtypes and devices. The
// indices themselves are checked when a pattern is made (check_pattern).
Sizes check_layer(const char* op, const at::Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern);

// `activations` (*, size), of a dtype that goes with `weight`.
void check_activations(const char* op, const char* name, const at::Tensor& activations, const c10::SymInt& size,
                       const at::Tensor& weight);

// Two activations with the same leading sizes.
void check_same_leading(const char* op, const char* name, const at::Tensor& activations, const char* other_name,
                        const at::Tensor& other);

// bias (M,) in weight's dtype.
void check_bias(const char* op, const at::Tensor& bias, const c10::SymInt& size, const at::Tensor& weight);

// dC/dw, (nnz,) in weight's dtype.
void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& weight);

// What sampled_product(rows, columns) accepts, and its uninitialised (nnz,) result: of their dtype, or float32 where
// that has 16 bits.
at::Tensor empty_sampled_product(const at::Tensor& rows, const at::Tensor& columns, const Pattern& pattern);

// Whether samples are adjacent in memory: then a result of the same leading size keeps that order.
bool is_feature_major(const at::Tensor& activations);

// An uninitialised (*, size) tensor with the leading sizes and the order in memory of `like`.
at::Tensor empty_activations(const at::Tensor& like, const c10::SymInt& size);

}  // namespace dendnorm::ops
