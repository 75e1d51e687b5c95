// The sparse layers of a model. Python has its own walk (rewiring/groups.py): each goes through the modules of its own
// language, in the same order.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "nn/dendnorm.h"

namespace dendnorm::nn {

// Each with its name, "" for the model itself, in the order of Python's named_modules.
inline void find_layers(torch::nn::Module& module, const std::string& name,
                        std::vector<std::pair<std::string, SparseLinearImpl*>>& found) {
  if (auto* layer = dynamic_cast<SparseLinearImpl*>(&module)) found.emplace_back(name, layer);
  for (const auto& child : module.named_children()) {
    find_layers(*child.value(), name.empty() ? child.key() : name + "." + child.key(), found);
  }
}

inline std::vector<std::pair<std::string, SparseLinearImpl*>> find_layers(torch::nn::Module& model) {
  std::vector<std::pair<std::string, SparseLinearImpl*>> found;
  find_layers(model, "", found);
  return found;
}

}  // namespace dendnorm::nn
