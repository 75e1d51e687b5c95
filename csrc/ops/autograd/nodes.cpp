#include "ops/autograd/nodes.h"

#include "ops/autograd/node_impl.h"
#include "ops/autograd/written_out.h"
#include "ops/call.h"
#include "ops/kept_rows.h"

namespace dendnorm::ops {

variable_list SparseLinearRule::gradients(const variable_list& grads, const Saved<kOperands>& saved, const Norm& norm,
                                          std::array<bool, kInputs> mask) {
  const auto& [input, weight, e, rows] = saved.operand;
  const bool kept = rows.defined() && !at::GradMode::is_enabled();
  if (const RowKeeper* keeper = kept ? row_keeper(grads[0], input, weight, e, rows) : nullptr) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return listed(keeper->backward(grads[0], input, weight, optional(e), saved.pattern, norm, mask, rows), mask);
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

template class RecordedNode<SparseLinearRule>;
template class RecordedNode<EffectiveWeightRule>;
template class RecordedNode<SampledProductRule>;
template class RecordedNode<SparseLinearBackwardRule>;
template class RecordedNode<EffectiveWeightBackwardRule>;

}  // namespace dendnorm::ops
