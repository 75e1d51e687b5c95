// The nodes that lead back from the ops' results. They are written by hand, like PyTorch's generated ones: torch.func's
// transforms refuse torch::autograd::Function.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

// What a node gives back. A rule has
//
//   kName           of its node, as PyTorch names its own
//   kOperands       how many tensors it needs besides the pattern
//   kInputs         how many the op's node leads back to
//   kCompiled       whether compiled autograd takes it
//   gradients(grads, saved, norm, mask)
//
// where grads are those of the op's results (undefined: 0), and mask tells which inputs' gradients are wanted.
template <std::size_t operands>
struct Saved {
  std::array<at::Tensor, operands> operand;
  Pattern pattern;
};

struct SparseLinearRule {  // operands: input, weight, excitability, the rows as the forward pass left them (kept_rows.h)
  static constexpr const char* kName = "SparseLinearBackward";
  static constexpr std::size_t kOperands = 4, kInputs = 4;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct EffectiveWeightRule {  // operands: weight, excitability
  static constexpr const char* kName = "EffectiveWeightBackward";
  static constexpr std::size_t kOperands = 2, kInputs = 2;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct SampledProductRule {  // operands: rows, columns
  static constexpr const char* kName = "SampledProductBackward";
  static constexpr std::size_t kOperands = 2, kInputs = 2;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

// The derivatives of the first two's: of the formula written out, which is only computed when they are asked for. That
// calls the autograd engine, which compiled autograd's functions must not.

struct SparseLinearBackwardRule {  // operands: grad_output, input, weight, excitability
  static constexpr const char* kName = "SparseLinearBackwardBackward";
  static constexpr std::size_t kOperands = 4, kInputs = 4;
  static constexpr bool kCompiled = false;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct EffectiveWeightBackwardRule {  // operands: grad, weight, excitability
  static constexpr const char* kName = "EffectiveWeightBackwardBackward";
  static constexpr std::size_t kOperands = 3, kInputs = 3;
  static constexpr bool kCompiled = false;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

template <class Rule>
class RecordedNode : public torch::autograd::Node {
 public:
  void save(const std::array<at::Tensor, Rule::kOperands>& operands, const Pattern& pattern, const Norm& norm);

  std::string name() const override { return Rule::kName; }
  void release_variables() override;
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;

  // For compiled autograd: what a graph depends on, and this node as a call in a graph.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& saved) override;

 private:
  static constexpr std::size_t kSaved = Rule::kOperands + 5;

  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const std::array<at::Tensor, kSaved>& saved, const Norm& norm,
                                                  std::array<bool, Rule::kInputs> mask);
  static torch::autograd::variable_list gradients_of_packed(const std::vector<at::Tensor>& grads,
                                                            const std::vector<c10::IValue>& packed);
  std::array<at::Tensor, kSaved> unpacked() const;
  std::array<bool, Rule::kInputs> mask() const;

  std::array<torch::autograd::SavedVariable, kSaved> saved_;
  Norm norm_;
};

extern template class RecordedNode<SparseLinearRule>;
extern template class RecordedNode<EffectiveWeightRule>;
extern template class RecordedNode<SampledProductRule>;
extern template class RecordedNode<SparseLinearBackwardRule>;
extern template class RecordedNode<EffectiveWeightBackwardRule>;

template <class Node>
auto make_node() {
  // shared_ptr or intrusive_ptr, by the version of PyTorch.
  using Pointer = std::remove_cv_t<std::remove_reference_t<decltype(torch::autograd::Edge::function)>>;
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    // PyTorch's deleteNode, which takes long graphs apart without recursion, exists in these versions only.
    return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Node>();
  }
}

// What `compute` gives, without a record of how, and a node that leads from it back to `inputs` where one of them needs
// a gradient. After that `save` gives the node what it needs for that; `results` lists the tensors of what was
// computed, undefined ones in the places of those without derivatives.
template <class Rule, class Save, class Compute, class Results, class... Inputs>
auto recorded(Save save, Compute compute, Results results, const Inputs&... inputs) {
  decltype(make_node<RecordedNode<Rule>>()) node;
  if (torch::autograd::compute_requires_grad(inputs...)) {
    node = make_node<RecordedNode<Rule>>();
    node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  }
  auto output = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return compute();
  }();
  if (node) {
    save(*node);
    const auto differentiable = results(output);
    torch::autograd::set_history(differentiable, node);
  }
  return output;
}

}  // namespace dendnorm::ops
