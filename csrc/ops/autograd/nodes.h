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
#include <memory>
#include <string>
#include <type_traits>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

class SavedPattern {
 public:
  void save(const Pattern& pattern);
  void reset_data();

 private:
  friend class UnpackedPattern;
  std::array<torch::autograd::SavedVariable, 5> tensors_;
};

// A saved pattern for as long as it is used.
class UnpackedPattern {
 public:
  explicit UnpackedPattern(const SavedPattern& saved);
  Pattern view() const { return {tensors_[0], tensors_[1], tensors_[2], tensors_[3], tensors_[4]}; }

 private:
  std::array<at::Tensor, 5> tensors_;
};

struct SparseLinearNode : torch::autograd::Node {
  torch::autograd::SavedVariable input, weight, excitability;
  SavedPattern pattern;
  Norm norm;

  std::string name() const override { return "SparseLinearBackward"; }
  void release_variables() override;
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
};

struct EffectiveWeightNode : torch::autograd::Node {
  torch::autograd::SavedVariable weight, excitability;
  SavedPattern pattern;
  Norm norm;

  std::string name() const override { return "EffectiveWeightBackward"; }
  void release_variables() override;
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
};

struct SampledProductNode : torch::autograd::Node {
  torch::autograd::SavedVariable rows, columns;
  SavedPattern pattern;

  std::string name() const override { return "SampledProductBackward"; }
  void release_variables() override;
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
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
// a gradient. `save` gives the node what it needs for that.
template <class Node, class Save, class Compute, class... Inputs>
at::Tensor recorded(Save save, Compute compute, const Inputs&... inputs) {
  decltype(make_node<Node>()) node;
  if (torch::autograd::compute_requires_grad(inputs...)) {
    node = make_node<Node>();
    node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
    save(*node);
  }
  at::Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = compute();
  }
  if (node) torch::autograd::set_history(output, node);
  return output;
}

}  // namespace dendnorm::ops
