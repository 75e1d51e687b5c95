// Derivatives of any order.
//
// First derivatives are ops themselves (sparse_linear_backward, effective_weight_backward). Where a derivative of a
// derivative is asked for, or a forward-mode one, those ops are written out in differentiable ones instead:
//   sparse_linear, without a norm, and sampled_product, which are bilinear and each other's derivatives, and
//   PyTorch's own ops on (nnz,) and (M,) for the normalisation.
// The nodes are written by hand, like PyTorch's generated ones: torch.func's transforms refuse
// torch::autograd::Function.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/norm.h"
#include "ops/call.h"
#include "ops/checks.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// ---- Calls through the dispatcher; those that others need too are in call.h ----

using Tensor2 = std::tuple<Tensor, Tensor>;
using Tensor4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;

using SparseLinearBackward = Tensor4(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, double, double,
                                     std::array<bool, 4>);
using EffectiveWeightBackward = Tensor2(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                                        const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, double,
                                        double, std::array<bool, 2>);
using SampledProduct = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&);

Tensor4 call_sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const OptionalTensor& excitability, const Pattern& p, const Norm& n,
                                    std::array<bool, 4> mask) {
  static const auto op = handle<SparseLinearBackward>("dendnorm::sparse_linear_backward");
  return op.call(grad_output, input, weight, excitability, p.ccol_indices, p.row_indices, p.crow_indices, p.col_indices,
                 p.perm, n.a, n.b, n.p, mask);
}

Tensor2 call_effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                       const Pattern& p, const Norm& n, std::array<bool, 2> mask) {
  static const auto op = handle<EffectiveWeightBackward>("dendnorm::effective_weight_backward");
  return op.call(grad, weight, excitability, p.ccol_indices, p.row_indices, p.crow_indices, p.col_indices, p.perm, n.a,
                 n.b, n.p, mask);
}

Tensor call_sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& p) {
  static const auto op = handle<SampledProduct>("dendnorm::sampled_product");
  return op.call(rows, columns, p.ccol_indices, p.row_indices, p.crow_indices, p.col_indices, p.perm);
}

const Norm kNoNorm{};

// sparse_linear as a part of a formula: in the types of its operands, for autocast has had its say where the layer was
// called.
Tensor product(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return call_sparse_linear(input, weight, bias, excitability, pattern, norm);
}

// ---- Forward-mode tangents ----

bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }
bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

Tensor primal(const Tensor& tensor) { return has_tangent(tensor) ? tensor._fw_primal(0) : tensor; }
Tensor tangent(const Tensor& tensor) { return tensor._fw_grad(0); }

void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

// ---- The derivatives, written out ----

// The pattern of the transposed layer, whose values in column order are values[perm].
struct Transposed {
  explicit Transposed(const Pattern& p)
      : inverse_perm(
            at::zeros_like(p.perm).scatter(0, p.perm.to(at::kLong), at::arange(p.perm.sym_size(0), p.perm.options()))),
        pattern{p.crow_indices, p.col_indices, p.ccol_indices, p.row_indices, inverse_perm} {}

  Tensor inverse_perm;
  Pattern pattern;
};

// The normalisation out of PyTorch's ops; the rule is in core/norm.h. A dead row (no connections, or zeros and
// b != 0) is computed from ones instead and multiplied by 0, so that no derivative of it is NaN. Sums over rows, and
// rows' numbers at their connections, are the layer's own ops with ones: PyTorch's index_add adds in any order on CUDA.
struct WrittenOut {
  const Pattern& pattern;
  Tensor ones;       // (1, N)
  Tensor safe;       // v (nnz,), ones in dead rows
  Tensor length;     // ||v||_p (M,); undefined where b = 0
  Tensor inverse_d;  // 1 / D (M,), 0 in dead rows
  Tensor factor;     // e / D (M,)
  Norm norm;

  WrittenOut(const Tensor& v, const OptionalTensor& e, const Pattern& p, const Norm& rule)
      : pattern(p), ones(at::ones_symint({1, p.ccol_indices.sym_size(0) - 1}, v.options())), norm(rule) {
    const c10::SymInt rows = p.crow_indices.sym_size(0) - 1;
    const Tensor counts = (p.crow_indices.slice(0, 1) - p.crow_indices.slice(0, 0, -1)).to(v.scalar_type());
    Tensor alive = counts > 0;
    safe = v;
    Tensor inverse = counts.clamp_min(1).pow(-norm.a);
    if (norm.b != 0) {
      const Tensor largest = at::zeros_symint({rows}, v.options())
                                 .scatter_reduce(0, p.row_indices.to(at::kLong), v.detach().abs(), "amax");
      alive = alive.logical_and(largest > 0);
      safe = at::where(at_connections(alive.to(v.scalar_type())) > 0, v, at::ones_like(v));
      const Tensor unit = at::where(alive, largest, at::ones_like(largest));
      const Tensor scaled = safe / at_connections(unit);
      const Tensor sum = sum_by_row(power_of_size(scaled, norm.p));
      // A row without connections has the sum 0, where a root has no derivative.
      length = unit * at::where(counts > 0, sum, at::ones_like(sum)).pow(1 / norm.p);
      inverse = inverse * length.pow(-norm.b);
    }
    inverse_d = at::where(alive, inverse, at::zeros_like(inverse));
    factor = given(e) ? *e * inverse_d : inverse_d;
  }

  // (nnz,) to (M,) and back.
  Tensor sum_by_row(const Tensor& t) const {
    return product(ones, t, std::nullopt, std::nullopt, pattern, kNoNorm).select(0, 0);
  }
  Tensor at_connections(const Tensor& t) const { return call_sampled_product(t.unsqueeze(0), ones, pattern); }

  // |t|^p with the derivatives that it has at 0 or, where it has none, 0.
  static Tensor power_of_size(const Tensor& t, double p) {
    if (p == 1) return t.abs();
    if (p == 2) return t * t;
    const Tensor zero = t == 0;
    return at::where(zero, at::zeros_like(t), at::where(zero, at::ones_like(t), t).abs().pow(p));
  }

  // sign(u) |u|^q.
  static Tensor signed_power_of(const Tensor& u, double q) {
    if (q == 0) return u.sign();
    if (q == 1) return u;
    const Tensor zero = u == 0;
    const Tensor size = at::where(zero, at::ones_like(u), u).abs().pow(q);
    return at::where(zero, at::zeros_like(u), u.sign() * size);
  }

  Tensor weight(const Tensor& v) const { return at_connections(factor) * v; }

  Tensor2 gradient(const Tensor& g, const Tensor& v, const OptionalTensor& e, std::array<bool, 2> mask) const {
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
};

bool is_identity(const OptionalTensor& e, const Norm& norm) { return !given(e) && norm.a == 0 && norm.b == 0; }

// sparse_linear under forward mode: bilinear once the effective weights are there.
Tensor sparse_linear_with_tangents(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  if (!is_identity(excitability, norm)) {
    const Tensor w = WrittenOut(weight, excitability, pattern, norm).weight(weight);
    return product(input, w, bias, std::nullopt, pattern, kNoNorm);
  }
  const Tensor x = primal(input), w = primal(weight), shift = or_undefined(bias);
  const OptionalTensor base = shift.defined() ? OptionalTensor(primal(shift)) : std::nullopt;
  const Tensor output = product(x, w, base, std::nullopt, pattern, norm);
  Tensor change;
  if (has_tangent(input)) accumulate(change, product(tangent(input), w, {}, {}, pattern, norm));
  if (has_tangent(weight)) accumulate(change, product(x, tangent(weight), {}, {}, pattern, norm));
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

Tensor4 written_out_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                             std::array<bool, 4> mask) {
  const Tensor none = at::empty({0}, weight.options());
  Tensor dx = at::empty({0}, input.options()), dv = none, db = none, de = none;
  const WrittenOut rule(weight, excitability, pattern, norm);
  if (mask[0]) {
    const Transposed transposed(pattern);
    const Tensor w = rule.weight(weight).index_select(0, pattern.perm);
    dx = product(grad_output, w, std::nullopt, std::nullopt, transposed.pattern, kNoNorm);
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

// ---- Nodes ----

// shared_ptr or intrusive_ptr, by the version of PyTorch.
using NodePointer = std::remove_cv_t<std::remove_reference_t<decltype(torch::autograd::Edge::function)>>;

template <class N>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    // PyTorch's deleteNode, which takes long graphs apart without recursion, exists in these versions only.
    return std::shared_ptr<N>(new N(), [](N* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>();
  }
}

struct SavedPattern {
  SavedVariable ccol_indices, row_indices, crow_indices, col_indices, perm;

  void save(const Pattern& p) {
    ccol_indices = SavedVariable(p.ccol_indices, false);
    row_indices = SavedVariable(p.row_indices, false);
    crow_indices = SavedVariable(p.crow_indices, false);
    col_indices = SavedVariable(p.col_indices, false);
    perm = SavedVariable(p.perm, false);
  }
  void reset() {
    ccol_indices.reset_data();
    row_indices.reset_data();
    crow_indices.reset_data();
    col_indices.reset_data();
    perm.reset_data();
  }
};

struct UnpackedPattern {
  Tensor ccol_indices, row_indices, crow_indices, col_indices, perm;

  explicit UnpackedPattern(const SavedPattern& saved)
      : ccol_indices(saved.ccol_indices.unpack()),
        row_indices(saved.row_indices.unpack()),
        crow_indices(saved.crow_indices.unpack()),
        col_indices(saved.col_indices.unpack()),
        perm(saved.perm.unpack()) {}
  Pattern view() const { return {ccol_indices, row_indices, crow_indices, col_indices, perm}; }
};

SavedVariable saved(const Tensor& tensor) { return SavedVariable(tensor, false); }

OptionalTensor optional(const SavedVariable& saved_variable) {
  const Tensor tensor = saved_variable.unpack();
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

struct SparseLinearNode : Node {
  SavedVariable input, weight, excitability;
  SavedPattern pattern;
  Norm norm;

  std::string name() const override { return "SparseLinearBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    input.reset_data();
    weight.reset_data();
    excitability.reset_data();
    pattern.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    if (!grads[0].defined()) return result;
    std::array<bool, 4> mask;
    for (std::size_t i = 0; i < 4; ++i) mask[i] = task_should_compute_output(i);
    const UnpackedPattern p(pattern);
    auto gradients = call_sparse_linear_backward(grads[0], input.unpack(), weight.unpack(), optional(excitability),
                                                 p.view(), norm, mask);
    if (mask[0]) result[0] = std::get<0>(std::move(gradients));
    if (mask[1]) result[1] = std::get<1>(std::move(gradients));
    if (mask[2]) result[2] = std::get<2>(std::move(gradients));
    if (mask[3]) result[3] = std::get<3>(std::move(gradients));
    return result;
  }
};

struct EffectiveWeightNode : Node {
  SavedVariable weight, excitability;
  SavedPattern pattern;
  Norm norm;

  std::string name() const override { return "EffectiveWeightBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    weight.reset_data();
    excitability.reset_data();
    pattern.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    if (!grads[0].defined()) return result;
    const std::array<bool, 2> mask{task_should_compute_output(0), task_should_compute_output(1)};
    const UnpackedPattern p(pattern);
    auto gradients =
        call_effective_weight_backward(grads[0], weight.unpack(), optional(excitability), p.view(), norm, mask);
    if (mask[0]) result[0] = std::get<0>(std::move(gradients));
    if (mask[1]) result[1] = std::get<1>(std::move(gradients));
    return result;
  }
};

struct SampledProductNode : Node {
  SavedVariable rows, columns;
  SavedPattern pattern;

  std::string name() const override { return "SampledProductBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    rows.reset_data();
    columns.reset_data();
    pattern.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    if (!grads[0].defined()) return result;
    const UnpackedPattern p(pattern);
    if (task_should_compute_output(0)) {
      result[0] = product(columns.unpack(), grads[0], std::nullopt, std::nullopt, p.view(), kNoNorm);
    }
    if (task_should_compute_output(1)) {
      const Transposed transposed(p.view());
      result[1] = product(rows.unpack(), grads[0].index_select(0, p.perm), std::nullopt, std::nullopt,
                          transposed.pattern, kNoNorm);
    }
    return result;
  }
};

// ---- The kernels at the Autograd key ----

Tensor sparse_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& excitability, const Tensor& ccol_indices, const Tensor& row_indices,
                     const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm, double a, double b,
                     double p) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm{a, b, p};
  if (any_tangent(input, weight, bias, excitability)) {
    return sparse_linear_with_tangents(input, weight, bias, excitability, pattern, norm);
  }
  const Tensor shift = or_undefined(bias), e = or_undefined(excitability);
  decltype(make_node<SparseLinearNode>()) node;
  if (torch::autograd::compute_requires_grad(input, weight, shift, e)) {
    node = make_node<SparseLinearNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(input, weight, shift, e));
    node->input = saved(input);
    node->weight = saved(weight);
    node->excitability = saved(e);
    node->pattern.save(pattern);
    node->norm = norm;
  }
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = call_sparse_linear(input, weight, bias, excitability, pattern, norm);
  }
  if (node) torch::autograd::set_history(output, node);
  return output;
}

Tensor4 sparse_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& excitability, const Tensor& ccol_indices,
                               const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                               const Tensor& perm, double a, double b, double p, std::array<bool, 4> output_mask) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm{a, b, p};
  if (torch::autograd::compute_requires_grad(grad_output, input, weight, or_undefined(excitability)) ||
      any_tangent(grad_output, input, weight, excitability)) {
    return written_out_backward(grad_output, input, weight, excitability, pattern, norm, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_sparse_linear_backward(grad_output, input, weight, excitability, pattern, norm, output_mask);
}

Tensor effective_weight(const Tensor& weight, const OptionalTensor& excitability, const Tensor& ccol_indices,
                        const Tensor& row_indices, const Tensor& crow_indices, const Tensor& col_indices,
                        const Tensor& perm, double a, double b, double p) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm{a, b, p};
  if (any_tangent(weight, excitability)) return WrittenOut(weight, excitability, pattern, norm).weight(weight);
  const Tensor e = or_undefined(excitability);
  decltype(make_node<EffectiveWeightNode>()) node;
  if (torch::autograd::compute_requires_grad(weight, e)) {
    node = make_node<EffectiveWeightNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(weight, e));
    node->weight = saved(weight);
    node->excitability = saved(e);
    node->pattern.save(pattern);
    node->norm = norm;
  }
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = call_effective_weight(weight, excitability, pattern, norm);
  }
  if (node) torch::autograd::set_history(output, node);
  return output;
}

Tensor2 effective_weight_backward(const Tensor& grad, const Tensor& weight, const OptionalTensor& excitability,
                                  const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& crow_indices,
                                  const Tensor& col_indices, const Tensor& perm, double a, double b, double p,
                                  std::array<bool, 2> output_mask) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  const Norm norm{a, b, p};
  if (torch::autograd::compute_requires_grad(grad, weight, or_undefined(excitability)) ||
      any_tangent(grad, weight, excitability)) {
    return WrittenOut(weight, excitability, pattern, norm).gradient(grad, weight, excitability, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_effective_weight_backward(grad, weight, excitability, pattern, norm, output_mask);
}

Tensor sampled_product(const Tensor& rows, const Tensor& columns, const Tensor& ccol_indices, const Tensor& row_indices,
                       const Tensor& crow_indices, const Tensor& col_indices, const Tensor& perm) {
  const Pattern pattern{ccol_indices, row_indices, crow_indices, col_indices, perm};
  if (any_tangent(rows, columns)) return sampled_product_with_tangents(rows, columns, pattern);
  decltype(make_node<SampledProductNode>()) node;
  if (torch::autograd::compute_requires_grad(rows, columns)) {
    node = make_node<SampledProductNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(rows, columns));
    node->rows = saved(rows);
    node->columns = saved(columns);
    node->pattern.save(pattern);
  }
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = call_sampled_product(rows, columns, pattern);
  }
  if (node) torch::autograd::set_history(output, node);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, Autograd, m) {
  m.impl("sparse_linear", sparse_linear);
  m.impl("sparse_linear_backward", sparse_linear_backward);
  m.impl("effective_weight", effective_weight);
  m.impl("effective_weight_backward", effective_weight_backward);
  m.impl("sampled_product", sampled_product);
}

}  // namespace dendnorm::ops
