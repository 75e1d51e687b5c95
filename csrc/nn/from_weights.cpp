// Layers from weights that are there.
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

#include "nn/checks.h"
#include "nn/dendnorm.h"
#include "nn/layer.h"
#include "ops/call.h"

namespace dendnorm::nn {

using at::Tensor;

void SparseLinearImpl::fill(const Tensor& ccol, const Tensor& row, const Tensor& effective, const Tensor& given_bias) {
  torch::NoGradGuard no_grad;
  Norm chosen = options.norm().resolve();
  write_pattern(ccol, row);
  chosen->check(*this);
  const bool taken = chosen->excitability.defined();
  const auto [values, excitability] = chosen->raw_values(effective, row_indices, options.out_features());
  chosen->initialise(*this);
  adopt(chosen);
  weight.copy_(values);
  if (given_bias.defined()) bias.copy_(given_bias);
  if (excitability.defined() && !taken) chosen->excitability.copy_(excitability);
}

SparseLinear SparseLinear::from_dense(const torch::nn::Linear& linear, std::optional<double> density,
                                      const NormChoice& norm) {
  torch::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(!linear.is_empty(), "linear must be a torch::nn::Linear, got an empty one");
  const Tensor dense = linear->weight.detach();
  checked_size("linear.in_features", dense.size(1));
  checked_size("linear.out_features", dense.size(0));
  const Largest kept = largest_of(dense, "linear.weight", density, norm, linear->bias.defined());
  const std::shared_ptr<SparseLinearImpl> layer(new SparseLinearImpl(kept.options, SparseLinearImpl::Unwritten{}));
  layer->fill(kept.ccol, kept.row, kept.effective, linear->bias);
  take_modes(*layer, *linear);
  return SparseLinear(layer);
}

SparseLinear SparseLinear::from_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                                    std::pair<int64_t, int64_t> shape, const Tensor& bias, const NormChoice& norm) {
  torch::NoGradGuard no_grad;
  const int64_t rows = checked_size("shape[0]", shape.first), cols = checked_size("shape[1]", shape.second);
  for (const auto& [name, tensor] : {std::pair("crow_indices", &crow_indices), std::pair("col_indices", &col_indices),
                                     std::pair("values", &values)}) {
    TORCH_CHECK_TYPE(tensor->defined(), name, " must be a tensor, got none");
  }
  const auto [ccol, row, effective] =
      ops::call_connections_of_csr(crow_indices, col_indices, values.detach(), bias, rows, cols);
  const auto options = SparseLinearOptions(cols, rows)
                           .nnz(row.numel())
                           .norm(norm)
                           .bias(bias.defined())
                           .device(values.device())
                           .dtype(values.scalar_type());
  const std::shared_ptr<SparseLinearImpl> layer(new SparseLinearImpl(options, SparseLinearImpl::Unwritten{}));
  layer->fill(ccol, row, effective, bias);
  return SparseLinear(layer);
}

}  // namespace dendnorm::nn
