#include "ops/autograd/nodes.h"

#include <mutex>
#include <tuple>
#include <utility>

#include "ops/autograd/written_out.h"
#include "ops/call.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

OptionalTensor optional(const SavedVariable& saved) {
  const Tensor tensor = saved.unpack();
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <class... Saved>
void release(Saved&... saved) {
  (saved.reset_data(), ...);
}

}  // namespace

void SavedPattern::save(const Pattern& pattern) {
  std::apply([this](const auto&... tensors) { tensors_ = {SavedVariable(tensors, false)...}; },
             Listed<const Pattern&>::list(pattern));
}

void SavedPattern::reset_data() {
  for (SavedVariable& tensor : tensors_) tensor.reset_data();
}

UnpackedPattern::UnpackedPattern(const SavedPattern& saved) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) tensors_[i] = saved.tensors_[i].unpack();
}

void SparseLinearNode::release_variables() {
  std::lock_guard<std::mutex> lock(mutex_);
  release(input, weight, excitability, pattern);
}

variable_list SparseLinearNode::apply(variable_list&& grads) {
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

void EffectiveWeightNode::release_variables() {
  std::lock_guard<std::mutex> lock(mutex_);
  release(weight, excitability, pattern);
}

variable_list EffectiveWeightNode::apply(variable_list&& grads) {
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

void SampledProductNode::release_variables() {
  std::lock_guard<std::mutex> lock(mutex_);
  release(rows, columns, pattern);
}

variable_list SampledProductNode::apply(variable_list&& grads) {
  std::lock_guard<std::mutex> lock(mutex_);
  variable_list result(2);
  if (!grads[0].defined()) return result;
  const UnpackedPattern p(pattern);
  if (task_should_compute_output(0)) result[0] = product(columns.unpack(), grads[0], p.view());
  if (task_should_compute_output(1)) {
    const Transposed transposed(p.view());
    result[1] = product(rows.unpack(), grads[0].index_select(0, p.view().perm), transposed.pattern);
  }
  return result;
}

}  // namespace dendnorm::ops
