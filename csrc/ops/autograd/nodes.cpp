#include "ops/autograd/nodes.h"

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <mutex>
#include <optional>
#include <tuple>
#include <utility>

#include "ops/autograd/written_out.h"
#include "ops/call.h"
#include "ops/kept_rows.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

// The wanted ones of a tuple of gradients.
template <std::size_t n, class Tuple>
variable_list listed(Tuple&& gradients, std::array<bool, n> mask) {
  return std::apply(
      [&](auto&&... all) {
        variable_list result{std::move(all)...};
        for (std::size_t i = 0; i < n; ++i) {
          if (!mask[i]) result[i] = Tensor();
        }
        return result;
      },
      std::forward<Tuple>(gradients));
}

template <std::size_t n>
std::array<bool, n> defined(const variable_list& grads) {
  std::array<bool, n> which;
  for (std::size_t i = 0; i < n; ++i) which[i] = grads[i].defined();
  return which;
}

// How gradients of `formula`'s results go back to its operands, by recording it now. Stand-ins for the operands are
// where that stops: one operand may depend on another.
template <std::size_t n, class Formula>
variable_list gradients_through(Formula formula, const variable_list& grads, const std::array<Tensor, n>& operands,
                                std::array<bool, n> mask) {
  const bool again = at::GradMode::is_enabled();  // the result is to have derivatives, too
  const at::AutoGradMode recording(true);
  std::array<Tensor, n> stand_ins;
  variable_list asked;
  for (std::size_t i = 0; i < n; ++i) {
    if (!operands[i].defined()) continue;
    stand_ins[i] = operands[i].alias();
    if (!mask[i]) continue;
    // An alias under torch.func may have lost it.
    if (!stand_ins[i].requires_grad()) stand_ins[i].set_requires_grad(true);
    asked.push_back(stand_ins[i]);
  }
  const variable_list results = formula(stand_ins);
  variable_list reached, given;
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (!grads[i].defined() || !results[i].requires_grad()) continue;
    reached.push_back(results[i]);
    given.push_back(grads[i]);
  }
  variable_list result(n);
  if (asked.empty() || reached.empty()) return result;
  variable_list found = torch::autograd::grad(reached, asked, given, again, again, true);
  for (std::size_t i = 0, next = 0; i < n; ++i) {
    if (stand_ins[i].defined() && mask[i]) result[i] = std::move(found[next++]);
  }
  return result;
}

}  // namespace

variable_list SparseLinearRule::gradients(const variable_list& grads, const Saved<kOperands>& saved, const Norm& norm,
                                          std::array<bool, kInputs> mask) {
  const auto& [input, weight, e, rows] = saved.operand;
  if (rows.defined() && !at::GradMode::is_enabled() && goes_to_cpu(grads[0], input, weight, e)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return listed(sparse_linear_backward_on_cpu(grads[0], input, weight, optional(e), saved.pattern, norm, mask, rows),
                  mask);
  }
  return listed(call_sparse_linear_backward(grads[0], input, weight, optional(e), saved.pattern, norm, mask), mask);
}

variable_list EffectiveWeightRule::gradients(const variable_list& grads, const Saved<kOperands>& saved,
                                             const Norm& norm, std::array<bool, kInputs> mask) {
  const auto& [weight, e] = saved.operand;
  return listed(call_effective_weight_backward(grads[0], weight, optional(e), saved.pattern, norm, mask), mask);
}

variable_list SampledProductRule::gradients(const variable_list& grads, const Saved<kOperands>& saved, const Norm&,
                                            std::array<bool, kInputs> mask) {
  const auto& [rows, columns] = saved.operand;
  variable_list result(kInputs);
  if (mask[0]) result[0] = product(columns, grads[0], saved.pattern);
  if (mask[1]) {
    const Transposed transposed(saved.pattern);
    result[1] = product(rows, grads[0].index_select(0, saved.pattern.perm), transposed.pattern);
  }
  return result;
}

variable_list SparseLinearBackwardRule::gradients(const variable_list& grads, const Saved<kOperands>& saved,
                                                  const Norm& norm, std::array<bool, kInputs> mask) {
  const auto formula = [&](const std::array<Tensor, kOperands>& operands) {
    const auto& [grad_output, input, weight, e] = operands;
    const auto wanted = defined<4>(grads);
    return listed(written_out_backward(grad_output, input, weight, optional(e), saved.pattern, norm, wanted), wanted);
  };
  return gradients_through(formula, grads, saved.operand, mask);
}

variable_list EffectiveWeightBackwardRule::gradients(const variable_list& grads, const Saved<kOperands>& saved,
                                                     const Norm& norm, std::array<bool, kInputs> mask) {
  const auto formula = [&](const std::array<Tensor, kOperands>& operands) {
    const auto& [grad, weight, e] = operands;
    const auto wanted = defined<2>(grads);
    const WrittenOut rule(weight, optional(e), saved.pattern, norm);
    return listed(rule.gradient(grad, weight, optional(e), wanted), wanted);
  };
  return gradients_through(formula, grads, saved.operand, mask);
}

template <class Rule>
void RecordedNode<Rule>::save(const std::array<Tensor, Rule::kOperands>& operands, const Pattern& pattern,
                              const Norm& norm) {
  std::size_t next = 0;
  const auto keep = [&](const Tensor& tensor) { saved_[next++] = torch::autograd::SavedVariable(tensor, false); };
  for (const Tensor& operand : operands) keep(operand);
  std::apply([&](const auto&... tensors) { (keep(tensors), ...); }, Listed<const Pattern&>::list(pattern));
  norm_ = norm;
}

template <class Rule>
void RecordedNode<Rule>::release_variables() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& tensor : saved_) tensor.reset_data();
}

template <class Rule>
std::array<Tensor, RecordedNode<Rule>::kSaved> RecordedNode<Rule>::unpacked() const {
  std::array<Tensor, kSaved> tensors;
  for (std::size_t i = 0; i < kSaved; ++i) tensors[i] = saved_[i].unpack();
  return tensors;
}

template <class Rule>
std::array<bool, Rule::kInputs> RecordedNode<Rule>::mask() const {
  std::array<bool, Rule::kInputs> wanted;
  for (std::size_t i = 0; i < Rule::kInputs; ++i) wanted[i] = task_should_compute_output(i);
  return wanted;
}

template <class Rule>
variable_list RecordedNode<Rule>::gradients(const variable_list& grads, const std::array<Tensor, kSaved>& saved,
                                            const Norm& norm, std::array<bool, Rule::kInputs> mask) {
  bool any = false;
  for (const Tensor& grad : grads) any = any || grad.defined();
  if (!any) return variable_list(Rule::kInputs);
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    constexpr std::size_t first = Rule::kOperands;
    const Pattern pattern{saved[first], saved[first + 1], saved[first + 2], saved[first + 3], saved[first + 4]};
    return Rule::gradients(grads, {{saved[i]...}, pattern}, norm, mask);
  }(std::make_index_sequence<Rule::kOperands>{});
}

template <class Rule>
variable_list RecordedNode<Rule>::apply(variable_list&& grads) {
  const auto saved = [this] {
    std::lock_guard<std::mutex> lock(mutex_);
    return unpacked();
  }();
  return gradients(grads, saved, norm_, mask());
}

// ---- Compiled autograd, as PyTorch's CppNode and generated nodes do it ----

template <class Rule>
void RecordedNode<Rule>::compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const {
  TORCH_CHECK_NOT_IMPLEMENTED(Rule::kCompiled, "dendnorm: compiled autograd does not take ", name(),
                              ", the derivative of a gradient; call this backward outside of it");
  for (const auto& tensor : saved_) args.collect(tensor, false);
  args.collect(norm_.a);
  args.collect(norm_.b);
  args.collect(norm_.p);
  for (const bool wanted : mask()) args.collect(wanted);
}

template <class Rule>
variable_list RecordedNode<Rule>::gradients_of_packed(const std::vector<Tensor>& grads,
                                                      const std::vector<c10::IValue>& packed) {
  torch::dynamo::autograd::PackedArgs args(packed);
  std::array<Tensor, kSaved> saved;
  for (Tensor& tensor : saved) tensor = args.unpack<Tensor>();
  Norm norm;
  for (double* number : {&norm.a, &norm.b, &norm.p}) *number = args.unpack<double>();
  const auto wanted = args.unpack<std::vector<bool>>();
  std::array<bool, Rule::kInputs> mask{};
  for (std::size_t i = 0; i < Rule::kInputs; ++i) mask[i] = wanted.at(i);
  return gradients(grads, saved, norm, mask);
}

template <class Rule>
variable_list RecordedNode<Rule>::apply_with_saved(const variable_list& grads,
                                                   torch::dynamo::autograd::SwapSavedVariables& saved) {
  namespace compiled = torch::dynamo::autograd;
  for (auto& tensor : saved_) saved.before(tensor);
  compiled::PackedArgs args;
  std::vector<at::TypePtr> types;
  const auto pack = [&]<class T>(const T& value) {
    args.pack(value);
    types.push_back(compiled::IValuePacker<T>::packed_type());
  };
  for (const Tensor& tensor : unpacked()) pack(tensor);
  for (const double number : {norm_.a, norm_.b, norm_.p}) pack(number);
  const auto wanted = mask();
  pack(std::vector<bool>(wanted.begin(), wanted.end()));
  const auto metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
      compiled::get_input_metadata(next_edges()));
  const auto& compiler = compiled::getPyCompilerInterface();
  // Bound once: a graph that is traced anew then calls the same function, and its compiler knows it.
  static const std::string function =
      compiler->bind_function(saved.get_py_compiler(), std::string("Dendnorm") + Rule::kName, gradients_of_packed,
                              types, /*is_custom_function=*/true, /*is_traceable=*/true);
  variable_list result =
      compiler->call_function(saved.get_py_compiler(), "apply_functional", function, grads, args.vec(), metadata);
  for (auto& tensor : saved_) saved.after(tensor);
  return result;
}

template class RecordedNode<SparseLinearRule>;
template class RecordedNode<EffectiveWeightRule>;
template class RecordedNode<SampledProductRule>;
template class RecordedNode<SparseLinearBackwardRule>;
template class RecordedNode<EffectiveWeightBackwardRule>;

}  // namespace dendnorm::ops
