// State dicts with the names of Python's, and the archives of torch::save.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/serialize.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "core/pattern.h"
#include "nn/dendnorm.h"
#include "nn/find_layers.h"
#include "nn/safetensors.h"
#include "ops/call.h"

namespace dendnorm::nn {
namespace {

using at::Tensor;

const std::string kMark = "pattern_mark";

// `mark` tells that of a layer.
template <class Mark>
void collect(const torch::nn::Module& module, const std::string& prefix, const Mark& mark, StateDict& found) {
  for (const auto& parameter : module.named_parameters(false)) found.insert(prefix + parameter.key(), *parameter);
  for (const auto& buffer : module.named_buffers(false)) found.insert(prefix + buffer.key(), *buffer);
  // A layer that shares another's norm does not have it among its children.
  const auto* layer = dynamic_cast<const SparseLinearImpl*>(&module);
  if (layer != nullptr) found.insert(prefix + kMark, mark(*layer));
  if (layer != nullptr && layer->norm->excitability.defined()) {
    found.insert(prefix + "norm.excitability", layer->norm->excitability);
  }
  for (const auto& child : module.named_children()) {
    if (layer == nullptr || child.key() != "norm") collect(*child.value(), prefix + child.key() + ".", mark, found);
  }
}

std::string listed(const std::vector<std::string>& names) {
  std::ostringstream text;
  for (std::size_t i = 0; i < names.size(); ++i) text << (i > 0 ? ", " : "") << names[i];
  return names.empty() ? "none" : text.str();
}

void check_names(const StateDict& own, const StateDict& state) {
  std::vector<std::string> missing, unexpected;
  for (const auto& item : own) {
    // Files of version 0.1 have no marks.
    if (!state.contains(item.key()) && !item.key().ends_with(kMark)) missing.push_back(item.key());
  }
  for (const auto& item : state) {
    if (!own.contains(item.key())) unexpected.push_back(item.key());
  }
  TORCH_CHECK_VALUE(missing.empty() && unexpected.empty(),
                    "state must hold the names of the module's tensors, got none of: ", listed(missing),
                    "; and these that the module has not: ", listed(unexpected));
}

void check_tensor(const std::string& name, const Tensor& own, const Tensor& given) {
  TORCH_CHECK_VALUE(given.defined(), name, " must be a tensor, got an undefined one");
  const bool sized = name.ends_with("weight") || name.ends_with("row_indices");
  TORCH_CHECK_VALUE(
      given.sizes() == own.sizes(), name, " must have shape ", own.sizes(), ", got ", given.sizes(),
      own.dim() == 1 && given.dim() == 1 && sized ? "; build the layer with nnz=" + std::to_string(given.numel()) : "");
  TORCH_CHECK_TYPE(!own.is_floating_point() || given.is_floating_point(), name, " must have a floating dtype, got ",
                   given.scalar_type());
}

StateDict from_pickle(const std::string& path, const std::vector<char>& bytes) {
  const char* hint = "; in Python, write it with torch.save(dict(model.state_dict()), path)";
  c10::IValue value;
  try {
    value = torch::pickle_load(bytes);
  } catch (const c10::Error& error) {
    TORCH_CHECK_VALUE(false, "path must name a dict of tensors, got ", path, ", which LibTorch cannot read", hint);
  }
  TORCH_CHECK_VALUE(value.isGenericDict(), "path must name a dict of tensors, got ", value.tagKind(), " in ", path,
                    hint);
  StateDict state;
  for (const auto& item : value.toGenericDict()) {
    TORCH_CHECK_VALUE(item.key().isString() && item.value().isTensor(),
                      "path must name a dict of tensors, got an entry that is none in ", path, hint);
    state.insert(item.key().toStringRef(), item.value().toTensor());
  }
  return state;
}

}  // namespace

StateDict state_dict(const torch::nn::Module& module) {
  StateDict found;
  collect(
      module, "",
      [](const SparseLinearImpl& layer) { return ops::call_pattern_mark(layer.ccol_indices, layer.row_indices); },
      found);
  return found;
}

void load_state_dict(torch::nn::Module& module, const StateDict& state, bool strict) {
  torch::NoGradGuard no_grad;
  StateDict own;
  // What marks the layers now does not matter.
  collect(module, "", [](const SparseLinearImpl&) { return at::empty({kMarks}, at::kDouble); }, own);
  if (strict) check_names(own, state);
  for (const auto& item : own) {
    if (const Tensor* given = state.find(item.key())) check_tensor(item.key(), item.value(), *given);
  }
  const auto layers = find_layers(module);
  for (const auto& [name, layer] : layers) {
    const std::string prefix = name.empty() ? name : name + ".";
    const Tensor* ccol = state.find(prefix + "ccol_indices");
    const Tensor* row = state.find(prefix + "row_indices");
    const Tensor* mark = state.find(prefix + kMark);
    if (ccol == nullptr && row == nullptr && mark == nullptr) continue;
    // Values belong to the pattern that they were saved with.
    TORCH_CHECK_VALUE(ccol != nullptr && row != nullptr && state.contains(prefix + "weight"), "state must hold ",
                      prefix, "weight, ", prefix, "ccol_indices and ", prefix, "row_indices together, got only a part");
    try {
      layer->check_pattern(*ccol, *row);
    } catch (const c10::Error& error) {
      TORCH_CHECK_VALUE(false, name.empty() ? "SparseLinear" : name, ": ", error.what_without_backtrace());
    }
    TORCH_CHECK_VALUE(
        mark == nullptr || at::equal(mark->cpu().to(at::kDouble), ops::call_pattern_mark(*ccol, *row).cpu()),
        "state must hold ", prefix, kMark,
        " of its own pattern, got that of another: the tensors were "
        "averaged with, or taken from, states of different patterns");
  }
  for (const auto& item : own) {
    const Tensor* given = state.find(item.key());
    if (given != nullptr && !item.key().ends_with(kMark)) item.value().copy_(*given);
  }
  for (const auto& [name, layer] : layers) {
    if (state.contains(name.empty() ? "row_indices" : name + ".row_indices"))
      layer->write_pattern(layer->ccol_indices, layer->row_indices);
  }
}

void save_state_dict(const torch::nn::Module& module, const std::string& path) {
  write_safetensors(state_dict(module), path);
}

StateDict read_state_dict(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(file.good(), "path must name a readable file, got ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const bool zip = bytes.size() > 4 && bytes[0] == 'P' && bytes[1] == 'K';
  return zip ? from_pickle(path, bytes) : parse_safetensors(bytes, path);
}

// ---- torch::save and torch::load: as of a module whose norm is its child, also where another layer registered it ----

void SparseLinearImpl::save(torch::serialize::OutputArchive& archive) const {
  torch::serialize::OutputArchive child(archive.compilation_unit());
  archive.write("weight", weight);
  if (bias.defined()) archive.write("bias", bias);
  archive.write("ccol_indices", ccol_indices, true);
  archive.write("row_indices", row_indices, true);
  if (norm->excitability.defined()) child.write("excitability", norm->excitability);
  archive.write("norm", child);
}

void SparseLinearImpl::load(torch::serialize::InputArchive& archive) {
  StateDict state;
  const auto read = [&](torch::serialize::InputArchive& from, const std::string& key, const std::string& name) {
    Tensor tensor;
    if (from.try_read(key, tensor)) state.insert(name, tensor);
  };
  for (const char* name : {"weight", "bias", "ccol_indices", "row_indices"}) read(archive, name, name);
  torch::serialize::InputArchive child;
  if (archive.try_read("norm", child)) read(child, "excitability", "norm.excitability");
  load_state_dict(*this, state);
}

}  // namespace dendnorm::nn
