#include "ops/autograd/tangents.h"

#include <ATen/TensorOperators.h>

#include "ops/autograd/written_out.h"
#include "ops/call.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

Tensor primal(const Tensor& tensor) { return has_tangent(tensor) ? tensor._fw_primal(0) : tensor; }
Tensor tangent(const Tensor& tensor) { return tensor._fw_grad(0); }

void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

bool is_identity(const OptionalTensor& e, const Norm& norm) { return !given(e) && norm.a == 0 && norm.b == 0; }

}  // namespace

// sparse_linear under forward mode: bilinear once the effective weights are there.
Tensor sparse_linear_with_tangents(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  if (!is_identity(excitability, norm)) {
    const Tensor w = WrittenOut(weight, excitability, pattern, norm).weight(weight);
    return product(input, w, pattern, bias);
  }
  const Tensor x = primal(input), w = primal(weight), shift = or_undefined(bias);
  const OptionalTensor base = shift.defined() ? OptionalTensor(primal(shift)) : std::nullopt;
  const Tensor output = product(x, w, pattern, base);
  Tensor change;
  if (has_tangent(input)) accumulate(change, product(tangent(input), w, pattern));
  if (has_tangent(weight)) accumulate(change, product(x, tangent(weight), pattern));
  if (has_tangent(shift)) accumulate(change, tangent(shift).to(output.scalar_type()).expand_as(output));
  output._set_fw_grad(change, 0, false);
  return output;
}

Tensor sampled_product_with_tangents(const Tensor& rows, const Tensor& columns, const Pattern& pattern) {
  const Tensor left = primal(rows), right = primal(columns);
  const Tensor output = call_sampled_product(left, right, pattern);
  Tensor change;
  if (has_tangent(rows)) accumulate(change, call_sampled_product(tangent(rows), right, pattern));
  if (has_tangent(columns)) accumulate(change, call_sampled_product(left, tangent(columns), pattern));
  output._set_fw_grad(change, 0, false);
  return output;
}

}  // namespace dendnorm::ops
