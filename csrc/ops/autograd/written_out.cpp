#include "ops/autograd/written_out.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <tuple>
#include <vector>

#include "ops/call.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// |t|^p with the derivatives that it has at 0 or, where it has none, 0.
Tensor power_of_size(const Tensor& t, double p) {
  if (p == 1) return t.abs();
  if (p == 2) return t * t;
  const Tensor zero = t == 0;
  return at::where(zero, at::zeros_like(t), at::where(zero, at::ones_like(t), t).abs().pow(p));
}

// sign(u) |u|^q.
Tensor signed_power_of(const Tensor& u, double q) {
  if (q == 0) return u.sign();
  if (q == 1) return u;
  const Tensor zero = u == 0;
  const Tensor size = at::where(zero, at::ones_like(u), u).abs().pow(q);
  return at::where(zero, at::zeros_like(u), u.sign() * size);
}

}  // namespace

Tensor product(const Tensor& input, const Tensor& weight, const Pattern& pattern, const OptionalTensor& bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return call_sparse_linear(input, weight, bias, std::nullopt, pattern, Norm{});
}

Transposed::Transposed(const Pattern& p)
    : inverse_perm(
          at::zeros_like(p.perm).scatter(0, p.perm.to(at::kLong), at::arange(p.perm.sym_size(0), p.perm.options()))),
      pattern{p.crow_indices, p.col_indices, p.ccol_indices, p.row_indices, inverse_perm} {}

WrittenOut::WrittenOut(const Tensor& v, const OptionalTensor& e, const Pattern& p, const Norm& rule)
    : pattern(p), ones(at::ones_symint({1, p.ccol_indices.sym_size(0) - 1}, v.options())), norm(rule) {
  const c10::SymInt rows = p.crow_indices.sym_size(0) - 1;
  const Tensor counts = (p.crow_indices.slice(0, 1) - p.crow_indices.slice(0, 0, -1)).to(v.scalar_type());
  Tensor alive = counts > 0;
  safe = v;
  Tensor inverse = counts.clamp_min(1).pow(-norm.a);
  if (norm.b != 0) {
    const Tensor largest =
        at::zeros_symint({rows}, v.options()).scatter_reduce(0, p.row_indices.to(at::kLong), v.detach().abs(), "amax");
    alive = alive.logical_and(largest > 0);
    safe = at::where(at_connections(alive.to(v.scalar_type())) > 0, v, at::ones_like(v));
    const Tensor unit = at::where(alive, largest, at::ones_like(largest));
    const Tensor scaled = safe / at_connections(unit);
    const Tensor sum = sum_by_row(power_of_size(scaled, norm.p));
    // A row without connections has the sum 0, where a root has no derivative.
    length = unit * at::where(counts > 0, sum, at::ones_like(sum)).pow(1 / norm.p);
    inverse = inverse * length.pow(-norm.b);
  }
  const Tensor zero = at::zeros_like(inverse);
  inverse_d = at::where(alive, inverse, zero);
  factor = given(e) ? at::where(alive, *e * inverse_d, zero) : inverse_d;
}

Tensor WrittenOut::sum_by_row(const Tensor& t) const { return product(ones, t, pattern).select(0, 0); }

Tensor WrittenOut::at_connections(const Tensor& t) const { return call_sampled_product(t.unsqueeze(0), ones, pattern); }

Tensor WrittenOut::weight(const Tensor& v) const { return at_connections(factor) * v; }

Tensor2 WrittenOut::gradient(const Tensor& g, const Tensor& v, const OptionalTensor& e,
                             std::array<bool, 2> mask) const {
  Tensor dv = g, de, pull;
  if (norm.b != 0) {
    const Tensor unit = safe / at_connections(length);
    pull = sum_by_row(g * unit);
    if (mask[0]) dv = g - norm.b * at_connections(pull) * signed_power_of(unit, norm.p - 1);
  } else if (mask[1]) {
    pull = sum_by_row(g * v);
  }
  dv = mask[0] ? at_connections(factor) * dv : at::empty({0}, v.options());
  if (mask[1] && given(e)) {
    de = inverse_d * (norm.b != 0 ? length * pull : pull);
    const bool shared = e->dim() == 0 || e->sym_size(0) == 1;
    if (shared) de = de.sum().reshape_symint(e->sym_sizes());
  } else {
    de = at::empty({0}, v.options());
  }
  return {dv, de};
}

Tensor4 written_out_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                             std::array<bool, 4> mask) {
  const Tensor none = at::empty({0}, weight.options());
  Tensor dx = at::empty({0}, input.options()), dv = none, db = none, de = none;
  const WrittenOut rule(weight, excitability, pattern, norm);
  if (mask[0]) {
    const Transposed transposed(pattern);
    const Tensor w = rule.weight(weight).index_select(0, pattern.perm);
    dx = product(grad_output, w, transposed.pattern);
  }
  if (mask[1] || mask[3]) {
    const Tensor g = call_sampled_product(grad_output, input, pattern);
    std::tie(dv, de) = rule.gradient(g, weight, excitability, {mask[1], mask[3]});
  }
  if (mask[2]) {
    std::vector<int64_t> leading(grad_output.dim() - 1);
    for (std::size_t d = 0; d < leading.size(); ++d) leading[d] = static_cast<int64_t>(d);
    // sum() over no dimensions would be a sum over all.
    db = leading.empty() ? grad_output.to(weight.scalar_type(), false, true)
                         : grad_output.sum(leading, false, weight.scalar_type());
  }
  return {dx, dv, db, de};
}

}  // namespace dendnorm::ops
