// A node of the graph that autograd records, by hand like PyTorch's generated ones: torch.func's transforms refuse
// torch::autograd::Function. node_impl.h defines the members.
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
#include <tuple>
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
//   Constants       what the op is called with besides tensors; parts(constants) lists it
//   gradients(grads, saved, constants, mask)
//
// where grads are those of the op's results (undefined: 0), and mask tells which inputs' gradients are wanted.
template <std::size_t operands>
struct Saved {
  std::array<at::Tensor, operands> operand;
  Pattern pattern;
};

// The numbers of which constants consist.
inline auto parts(Norm& norm) { return std::tie(norm.a, norm.b, norm.p); }
inline auto parts(const Norm& norm) { return std::tie(norm.a, norm.b, norm.p); }

template <class Rule>
class RecordedNode : public torch::autograd::Node {
 public:
  using Constants = typename Rule::Constants;

  void save(const std::array<at::Tensor, Rule::kOperands>& operands, const Pattern& pattern,
            const Constants& constants);

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
                                                  const std::array<at::Tensor, kSaved>& saved,
                                                  const Constants& constants, std::array<bool, Rule::kInputs> mask);
  static torch::autograd::variable_list gradients_of_packed(const std::vector<at::Tensor>& grads,
                                                            const std::vector<c10::IValue>& packed);
  std::array<at::Tensor, kSaved> unpacked() const;
  std::array<bool, Rule::kInputs> mask() const;

  std::array<torch::autograd::SavedVariable, kSaved> saved_;
  Constants constants_;
};

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

inline constexpr auto itself = [](const at::Tensor& result) -> const at::Tensor& { return result; };

// Those that are wanted; an op's others are without entries.
template <std::size_t n, class Tuple>
std::vector<at::Tensor> wanted(const Tuple& results, std::array<bool, n> mask) {
  return std::apply(
      [&](const auto&... all) {
        std::size_t i = 0;
        return std::vector<at::Tensor>{(mask[i++] ? all : at::Tensor())...};
      },
      results);
}

}  // namespace dendnorm::ops
