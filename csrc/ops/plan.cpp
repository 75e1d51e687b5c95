// The plan of a rewiring, for every device: what goes, what stays, and all that is then written.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <tuple>

#include "ops/call.h"
#include "ops/rewire.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// Of the connections that go. Their number in each column says it at less cost than a search; a device that has found
// a fault, of which nobody knows yet, may count otherwise.
Tensor columns_of(const Tensor& ccol_indices, const Tensor& ccol_left, const Tensor& removed) {
  if (!removed.is_cpu()) return at::searchsorted(ccol_indices, removed, /*out_int32=*/false, /*right=*/true) - 1;
  return at::repeat_interleave(ccol_indices.diff() - ccol_left.diff(), std::optional(removed.numel())).to(at::kLong);
}

Tensors5 plan_excision(const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& importance, std::int64_t k,
                       bool sound, const OptionalTensor& status) {
  const at::NoGradGuard no_grad;
  const Tensor dropped = call_weakest(importance.to(ccol_indices.device()), k, status);
  auto [ccol_left, row_left, removed] = call_excise(ccol_indices, row_indices, dropped, k, sound, status);
  const Tensor row = row_indices.index_select(0, removed).to(at::kLong);
  return {dropped, ccol_left, row_left, row, columns_of(ccol_indices, ccol_left, removed)};
}

Tensors5 plan_excision_meta(const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& importance,
                            std::int64_t k, bool, const OptionalTensor& status) {
  const Tensor dropped = empty_weakest(importance, k, status);
  auto [ccol_left, row_left, removed] = empty_excise(ccol_indices, row_indices, dropped, k, status);
  const Tensor ends = at::empty({k}, row_indices.options().dtype(at::kLong));
  return {dropped, ccol_left, row_left, ends, at::empty_like(ends)};
}

// What a rule or a variant draws, before anything relies on it.
void check_drawn(const Tensor& values, std::int64_t k, at::ScalarType dtype, const Tensor& row_indices) {
  TORCH_CHECK_VALUE(values.defined(), "values of new connections must be a tensor of shape (", k, ",), got none");
  TORCH_CHECK_VALUE(values.dim() == 1 && values.sym_size(0) == k && values.scalar_type() == dtype,
                    "values of new connections must be a ", dtype_name(dtype), " tensor of shape (", k, ",), got ",
                    dtype_name(values.scalar_type()), " of shape ", shape_text(values));
  TORCH_CHECK_VALUE(values.layout() == at::kStrided, "values of new connections must be in dense memory, got layout ",
                    values.layout());
  TORCH_CHECK_VALUE(values.is_meta() == row_indices.is_meta(), "values of new connections must be on ",
                    row_indices.device(), ", got a tensor on ", values.device());
}

// On `device`; noted in the status, for which nobody waits, where there is one.
void check_finite(const Tensor& values, at::Device device, const OptionalTensor& status) {
  if (values.numel() == 0) return;
  const Tensor wrong = at::isfinite(values).logical_not().to(device, at::kByte), first = wrong.argmax();
  if (!given(status)) {
    if (wrong.any().item<bool>()) raise_fault(Status{code_of(Fault::kValue, first.item<std::int64_t>()), {}});
    return;
  }
  const Tensor found = at::where(wrong.any(), first + code_of(Fault::kValue, 0), kClear);
  const Tensor kept = status->select(0, 0);
  kept.copy_(at::minimum(kept, found));
}

Tensors8 plan_rewiring(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, const Tensor& dropped,
                       std::int64_t k, const Tensor& keys, const Tensor& values, at::ScalarType dtype, bool sound,
                       const OptionalTensor& status) {
  const at::NoGradGuard no_grad;
  auto [ccol, row, source] = call_replace_connections(ccol_indices, row_indices, rows, dropped, keys, sound, status);
  check_drawn(values, k, dtype, row_indices);
  check_finite(values, row_indices.device(), status);
  auto [crow, col, perm] = call_transpose_pattern(ccol, row, rows);
  const Tensor came_col = keys.div(rows, "floor");
  return {ccol, row, crow, col, perm, source, keys - came_col * rows, came_col};
}

Tensors8 plan_rewiring_meta(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows,
                            const Tensor& dropped, std::int64_t k, const Tensor& keys, const Tensor& values,
                            at::ScalarType dtype, bool, const OptionalTensor& status) {
  auto [ccol, row, source] = empty_replacement(ccol_indices, row_indices, rows, dropped, keys, status);
  check_drawn(values, k, dtype, row_indices);
  auto [crow, col, perm] = call_transpose_pattern(ccol, row, rows);
  return {ccol, row, crow, col, perm, source, at::empty_like(keys), at::empty_like(keys)};
}

// Ten digits are more than the order of summation changes.
Tensor spread(const Tensor& values) {
  const at::NoGradGuard no_grad;
  if (values.numel() == 0) return at::ones({}, values.options().dtype(at::kDouble));
  const auto [mantissa, exponent] = at::frexp(values.to(at::kDouble).square().mean().sqrt());
  return at::ldexp((mantissa * 1024).round() / 1024, exponent);
}

Tensor spread_meta(const Tensor& values) { return at::empty({}, values.options().dtype(at::kDouble)); }

void rules(torch::Library& m) {
  m.impl("plan_excision", plan_excision);
  m.impl("plan_rewiring", plan_rewiring);
  m.impl("spread", spread);
}

}  // namespace

// They are made of operations that every device has, and of the ops of rewiring.
TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { rules(m); }
TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { rules(m); }
TORCH_LIBRARY_IMPL(dendnorm, CompositeExplicitAutograd, m) { rules(m); }

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  m.impl("plan_excision", plan_excision_meta);
  m.impl("plan_rewiring", plan_rewiring_meta);
  m.impl("spread", spread_meta);
}

}  // namespace dendnorm::ops
