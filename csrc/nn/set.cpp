// Sparse evolutionary training, in place, with the optimizer's state moving along.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "core/shares.h"
#include "nn/dendnorm.h"
#include "nn/find_layers.h"
#include "ops/call.h"

namespace dendnorm {
namespace {

using at::Tensor;
using nn::SparseLinearImpl;

void carry(const Tensor& values, const Tensor& source, const Tensor& fill) {
  const at::Device home = ops::home_of("dendnorm::carry_", values.device());
  if (home == values.device()) return ops::call_carry_(values, source.to(home), fill.to(home));
  Tensor moved = values.to(home);
  ops::call_carry_(moved, source.to(home), fill.to(home));
  values.copy_(moved);
}

void check_zeta(double zeta) { TORCH_CHECK_VALUE(0 <= zeta && zeta <= 1, "zeta must be in [0, 1], got ", zeta); }

template <class State, class... Getters>
bool collect(torch::optim::OptimizerParamState& state, std::vector<Tensor>& found, Getters... getters) {
  const auto* mine = dynamic_cast<const State*>(&state);
  if (mine == nullptr) return false;
  (found.push_back(getters(*mine)), ...);
  return true;
}

}  // namespace

// All that a rewiring will write to one weight, computed before anything is written.
struct SET::Plan {
  Layers layers;
  LayerReport report;
  Tensor ccol_indices, row_indices, crow_indices, col_indices, perm;
  Tensor source;                   // int32 (nnz,): where each connection was, -1 for the new ones
  Tensor values;                   // (k,): v of the new ones
  std::vector<Tensor> companions;  // the gradient and the optimizer's state, of the weight's shape

  void write() const {
    if (report.k == 0) return;
    for (SparseLinearImpl* layer : layers.sharing) {
      layer->write_views(ccol_indices, row_indices, crow_indices, col_indices, perm);
    }
    carry(layers.sharing[0]->weight, source, values);
    for (const Tensor& tensor : companions) carry(tensor, source, tensor.new_zeros({}));
  }
};

std::ostream& operator<<(std::ostream& stream, const RewireReport& report) {
  stream << "rewiring " << report.step;
  for (const LayerReport& layer : report.layers) {
    stream << "\n  " << (layer.name.empty() ? "layer" : layer.name) << ": " << layer.k << " of " << layer.nnz
           << " connections replaced";
  }
  return stream;
}

SET::SET(std::shared_ptr<torch::nn::Module> model, torch::optim::Optimizer& optimizer, SETOptions options)
    : SET(std::move(model), &optimizer, std::move(options)) {}

SET::SET(std::shared_ptr<torch::nn::Module> model, SETOptions options)
    : SET(std::move(model), nullptr, std::move(options)) {}

SET::SET(std::shared_ptr<torch::nn::Module> model, torch::optim::Optimizer* optimizer, SETOptions options)
    : model_(std::move(model)), optimizer_(optimizer), options_(std::move(options)) {
  TORCH_CHECK_VALUE(model_ != nullptr, "model must be a torch::nn::Module, got nullptr");
  check_zeta(options_.zeta());
  TORCH_CHECK_VALUE(options_.seed() >= 0, "seed must be in [0, 2^63), got ", options_.seed());
  TORCH_CHECK_VALUE(
      dynamic_cast<torch::optim::LBFGS*>(optimizer_) == nullptr,
      "optimizer must keep its state parameter by parameter for it to be moved, got LBFGS: its directions "
      "belong to all parameters together and to the old connections");
  layers();
}

void SET::zeta(double value) {
  check_zeta(value);
  options_.zeta(value);
}

RewireReport SET::step() {
  torch::NoGradGuard no_grad;
  const int64_t number = steps_ + 1;  // 0 is the draw of a fresh layer
  std::vector<Plan> planned;
  for (const Layers& sharing : layers()) {
    planned.push_back(plan(sharing, number, static_cast<int64_t>(planned.size())));
  }
  RewireReport report{number, {}};
  for (const Plan& rewiring : planned) {
    rewiring.write();
    report.layers.push_back(rewiring.report);
  }
  steps_ = number;
  return report;
}

std::map<std::string, int64_t> SET::state_dict() const {
  return {{"seed", options_.seed()}, {"steps", steps_}, {"calls", 0}};
}

void SET::load_state_dict(const std::map<std::string, int64_t>& state) {
  for (const char* key : {"seed", "steps", "calls"}) {
    const auto found = state.find(key);
    TORCH_CHECK_VALUE(found != state.end() && state.size() == 3, "state must have the keys seed, steps and calls, got ",
                      state.size(), " keys", found == state.end() ? std::string(" without ") + key : "");
    TORCH_CHECK_VALUE(found->second >= 0, "state[\"", key, "\"] must be in [0, 2^63), got ", found->second);
  }
  options_.seed(state.at("seed"));
  steps_ = state.at("steps");
}

Tensor SET::importance(SparseLinearImpl& layer) { return layer.effective_weight().abs(); }

Tensor SET::grow(SparseLinearImpl& layer, const Tensor& ccol_indices, const Tensor& row_indices, int64_t k,
                 int64_t step, int64_t index) {
  return ops::call_empty_positions(ccol_indices, row_indices, layer.options.out_features(), k, options_.seed(), step,
                                   index);
}

Tensor SET::draw(SparseLinearImpl& layer, int64_t k, int64_t step, int64_t index, torch::Device device) {
  const Tensor drawn = ops::call_counter_normal(k, options_.seed(), step, index, layer.weight.scalar_type(), device);
  return drawn.mul_(ops::call_spread(layer.weight.detach()).to(device, drawn.scalar_type()));
}

std::vector<Tensor> SET::state_tensors(torch::optim::OptimizerParamState& state) {
  using namespace torch::optim;
  std::vector<Tensor> found;
  const bool known =
      collect<SGDParamState>(state, found, [](const auto& s) { return s.momentum_buffer(); }) ||
      collect<AdamParamState>(
          state, found, [](const auto& s) { return s.exp_avg(); }, [](const auto& s) { return s.exp_avg_sq(); },
          [](const auto& s) { return s.max_exp_avg_sq(); }) ||
      collect<AdamWParamState>(
          state, found, [](const auto& s) { return s.exp_avg(); }, [](const auto& s) { return s.exp_avg_sq(); },
          [](const auto& s) { return s.max_exp_avg_sq(); }) ||
      collect<RMSpropParamState>(
          state, found, [](const auto& s) { return s.square_avg(); }, [](const auto& s) { return s.momentum_buffer(); },
          [](const auto& s) { return s.grad_avg(); }) ||
      collect<AdagradParamState>(state, found, [](const auto& s) { return s.sum(); });
  TORCH_CHECK_VALUE(known,
                    "optimizer must be SGD, Adam, AdamW, RMSprop or Adagrad for its state to be moved, got the state ",
                    c10::demangle(typeid(state).name()), "; override SET::state_tensors for your own");
  return found;
}

std::vector<SET::Layers> SET::layers() const {
  const auto every = nn::find_layers(*model_);
  TORCH_CHECK_VALUE(!every.empty(), "model must hold a SparseLinear to be rewired, got none in ", model_->name());
  std::vector<Layers> result;
  for (const auto& [name, layer] : every) {
    const auto same = std::find_if(result.begin(), result.end(), [&layer = layer](const Layers& other) {
      return other.sharing[0]->weight.is_same(layer->weight);
    });
    if (same == result.end()) {
      result.push_back({name, {layer}});
    } else if (std::count(same->sharing.begin(), same->sharing.end(), layer) == 0) {
      same->sharing.push_back(layer);
    }
  }
  if (optimizer_ == nullptr) return result;
  std::set<const void*> held;
  for (const auto& group : optimizer_->param_groups()) {
    for (const Tensor& parameter : group.params()) held.insert(parameter.unsafeGetTensorImpl());
  }
  for (const Layers& sharing : result) {
    const Tensor& weight = sharing.sharing[0]->weight;
    TORCH_CHECK_VALUE(held.count(weight.unsafeGetTensorImpl()) != 0 || !weight.requires_grad(),
                      "optimizer must hold the weight of every layer that is rewired, got none for layer '",
                      sharing.name,
                      "': its state would be lost; give SET the part of the model that the optimizer "
                      "trains");
  }
  return result;
}

SET::Plan SET::plan(const Layers& sharing, int64_t step, int64_t index) {
  SparseLinearImpl& layer = *sharing.sharing[0];
  const at::Device device = layer.weight.device();
  const int64_t rows = layer.options.out_features();
  for (const SparseLinearImpl* other : sharing.sharing) {
    TORCH_CHECK_VALUE(
        at::equal(layer.ccol_indices, other->ccol_indices) && at::equal(layer.row_indices, other->row_indices),
        "layer '", sharing.name, "': layers that share its weight must have its pattern, got another");
  }
  Plan made{sharing, {}, {}, {}, {}, {}, {}, {}, {}, companions(sharing.name, layer.weight)};
  const int64_t k = share_of(options_.zeta(), layer.nnz());
  // Where this build has no kernels for the device, the CPU draws the same.
  const at::Device home = ops::home_of("dendnorm::weakest", device);
  const Tensor ccol = layer.ccol_indices.to(home), row = layer.row_indices.to(home);
  const auto of_layer = [&](const auto& planned) {
    try {
      return planned();
    } catch (const c10::Error& error) {
      TORCH_CHECK_VALUE(false, "layer '", sharing.name, "': ", error.what_without_backtrace());
    }
  };
  const Tensor score = importance(layer);
  const auto [dropped, left, row_left, gone_row, gone_col] =
      of_layer([&] { return ops::call_plan_excision(ccol, row, score, k); });
  const Tensor keys = grow(layer, left, row_left, k, step, index);
  made.values = draw(layer, k, step, index, home);
  Tensor came_row, came_col;
  std::tie(made.ccol_indices, made.row_indices, made.crow_indices, made.col_indices, made.perm, made.source, came_row,
           came_col) = of_layer([&, &dropped = dropped] {
    return ops::call_plan_rewiring(ccol, row, rows, dropped, k, keys, made.values, layer.weight.scalar_type());
  });
  made.report = {sharing.name,
                 k,
                 {gone_row.to(device), gone_col.to(device)},
                 {came_row.to(device), came_col.to(device)},
                 layer.nnz()};
  return made;
}

// The tensors that belong to the weight entry by entry, each once; all can be written in place.
std::vector<Tensor> SET::companions(const std::string& name, const Tensor& weight) {
  std::vector<Tensor> candidates{weight.grad()};
  if (optimizer_ != nullptr) {
    auto& states = optimizer_->state();
    const auto state = states.find(weight.unsafeGetTensorImpl());
    if (state != states.end()) {
      for (const Tensor& tensor : state_tensors(*state->second)) candidates.push_back(tensor);
    }
  }
  std::vector<Tensor> found;
  const auto same = [](const Tensor& one, const Tensor& two) {
    return one.data_ptr() == two.data_ptr() && one.strides() == two.strides() &&
           one.scalar_type() == two.scalar_type() && one.device() == two.device();
  };
  for (const Tensor& tensor : candidates) {
    if (!tensor.defined() || tensor.sizes() != weight.sizes() || tensor.numel() == 0) continue;
    TORCH_CHECK_VALUE(
        tensor.layout() == at::kStrided && !tensor.is_inference() && (tensor.stride(0) != 0 || tensor.numel() == 1),
        "layer '", name, "': optimizer state of the weight's shape must be dense and writable in place, got layout ",
        tensor.layout(), ", inference tensor ", tensor.is_inference());
    const auto known = [&](const Tensor& other) { return same(tensor, other); };
    if (!same(tensor, weight) && std::none_of(found.begin(), found.end(), known)) found.push_back(tensor);
  }
  return found;
}

}  // namespace dendnorm
