// Derivatives written out in differentiable ops, for those of higher order and for forward mode:
//   sparse_linear, without a norm, and sampled_product, which are bilinear and each other's derivatives, and
//   PyTorch's own ops on (nnz,) and (M,) for the normalisation.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

// sparse_linear as a part of a formula: without a norm, and in the types of its operands, for autocast has had its say
// where the layer was called.
at::Tensor product(const at::Tensor& input, const at::Tensor& weight, const Pattern& pattern,
                   const OptionalTensor& bias = std::nullopt);

// The pattern of the transposed layer, whose values in column order are values[perm].
struct Transposed {
  explicit Transposed(const Pattern& pattern);

  at::Tensor inverse_perm;
  Pattern pattern;
};

// The normalisation out of PyTorch's ops; the rule is in core/norm.h. A dead row (no connections, or zeros and
// b != 0) is computed from ones instead and multiplied by 0, so that no derivative of it is NaN. Sums over rows, and
// rows' numbers at their connections, are the layer's own ops with ones: PyTorch's index_add adds in any order on CUDA.
struct WrittenOut {
  const Pattern& pattern;
  at::Tensor ones;       // (1, N)
  at::Tensor safe;       // v (nnz,), ones in dead rows
  at::Tensor length;     // ||v||_p (M,); undefined where b = 0
  at::Tensor inverse_d;  // 1 / D (M,), 0 in dead rows
  at::Tensor factor;     // e / D (M,)
  Norm norm;

  WrittenOut(const at::Tensor& v, const OptionalTensor& e, const Pattern& pattern, const Norm& norm);

  // w (nnz,)
  at::Tensor weight(const at::Tensor& v) const;
  // dC/dv and dC/de of g = dC/dw.
  Tensor2 gradient(const at::Tensor& g, const at::Tensor& v, const OptionalTensor& e, std::array<bool, 2> mask) const;

 private:
  // (nnz,) to (M,) and back.
  at::Tensor sum_by_row(const at::Tensor& t) const;
  at::Tensor at_connections(const at::Tensor& t) const;
};

Tensor4 written_out_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                             std::array<bool, 4> mask);

}  // namespace dendnorm::ops
