// The nodes that lead back from the ops of a linear layer.
#pragma once

#include <torch/csrc/autograd/variable.h>

#include <array>
#include <cstddef>

#include "core/norm.h"
#include "ops/autograd/node.h"

namespace dendnorm::ops {

struct SparseLinearRule {  // operands: input, weight, excitability, the rows as the forward pass left them
                           // (kept_rows.h)
  static constexpr const char* kName = "SparseLinearBackward";
  static constexpr std::size_t kOperands = 4, kInputs = 4;
  using Constants = Norm;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct EffectiveWeightRule {  // operands: weight, excitability
  static constexpr const char* kName = "EffectiveWeightBackward";
  static constexpr std::size_t kOperands = 2, kInputs = 2;
  using Constants = Norm;
  static constexpr bool kCompiled = true;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct SampledProductRule {  // operands: rows, columns
  static constexpr const char* kName = "SampledProductBackward";
  static constexpr std::size_t kOperands = 2, kInputs = 2;
  using Constants = Norm;
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
  using Constants = Norm;
  static constexpr bool kCompiled = false;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

struct EffectiveWeightBackwardRule {  // operands: grad, weight, excitability
  static constexpr const char* kName = "EffectiveWeightBackwardBackward";
  static constexpr std::size_t kOperands = 3, kInputs = 3;
  using Constants = Norm;
  static constexpr bool kCompiled = false;
  static torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads,
                                                  const Saved<kOperands>& saved, const Norm& norm,
                                                  std::array<bool, kInputs> mask);
};

extern template class RecordedNode<SparseLinearRule>;
extern template class RecordedNode<EffectiveWeightRule>;
extern template class RecordedNode<SampledProductRule>;
extern template class RecordedNode<SparseLinearBackwardRule>;
extern template class RecordedNode<EffectiveWeightBackwardRule>;

}  // namespace dendnorm::ops
