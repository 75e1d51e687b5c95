// What the ops of a layer accept and give, for every device and for Meta.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <tuple>

#include "core/norm.h"
#include "ops/require.h"

namespace dendnorm::ops {

// The two views of a pattern; see library.cpp.
struct Pattern {
  const at::Tensor& ccol_indices;
  const at::Tensor& row_indices;
  const at::Tensor& crow_indices;
  const at::Tensor& col_indices;
  const at::Tensor& perm;
};

// Of input, weight, bias and excitability; undefined where not wanted.
struct Gradients {
  at::Tensor input, weight, bias, excitability;
};

using Tensor2 = std::tuple<at::Tensor, at::Tensor>;
using Tensor4 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// a, b and p that are finite, p at least 1.
void check_norm(const char* op, const Norm& norm);

// Each checks an op's arguments, but for what the pattern's indices are, which is checked when a pattern is made
// (check_pattern), and gives the op's uninitialised results.

// input (*, N), of weight's dtype or, where that is float32, of 16 bits; weight (nnz,); bias (M,). The result is (*,
// M).
at::Tensor empty_product(const char* op, const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const c10::SymInt& inputs, const c10::SymInt& outputs);

// The same; excitability (), (1,) or (M,).
at::Tensor empty_sparse_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm);

Gradients empty_sparse_linear_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                                       const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                       std::array<bool, 4> mask);

at::Tensor empty_effective_weight(const at::Tensor& weight, const OptionalTensor& excitability, const Pattern& pattern,
                                  const Norm& norm);

// Of weight and excitability.
Gradients empty_effective_weight_backward(const at::Tensor& grad, const at::Tensor& weight,
                                          const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                          std::array<bool, 2> mask);

// rows (*, M) and columns (*, N); the result is (nnz,) of their dtype, or float32 where that has 16 bits.
at::Tensor empty_sampled_product(const at::Tensor& rows, const at::Tensor& columns, const Pattern& pattern);

// Gradients as a schema has them, which knows no absent results: what is not wanted is without entries.
Tensor4 results_of(const Gradients& gradients, const at::Tensor& input, const at::Tensor& weight);
Tensor2 results_of(const Gradients& gradients, const at::Tensor& weight);

}  // namespace dendnorm::ops
