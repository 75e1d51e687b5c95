// Values that stand for given weights: found once, when a layer is made, and by the host.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <string_view>
#include <tuple>

#include "ops/call.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> raw_values(const Tensor& effective, const Tensor& row_indices, std::int64_t rows, double a,
                                      double b, double p, bool variable, const OptionalTensor& excitability,
                                      double start, std::string_view name) {
  const OptionalTensor e = given(excitability) ? OptionalTensor(excitability->cpu()) : std::nullopt;
  const auto [values, chosen] =
      call_raw_values(effective.cpu(), row_indices.cpu(), rows, Norm{a, b, p}, variable, e, start, name);
  return {values.to(effective.device()), chosen.to(effective.device())};
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { m.impl("raw_values", raw_values); }

}  // namespace dendnorm::ops
