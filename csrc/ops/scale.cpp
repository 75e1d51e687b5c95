// Values that stand for given weights: see core/scale.h.
#include "core/scale.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "ops/layer.h"
#include "ops/require.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

constexpr const char* kOp = "raw_values";

// What raw_values accepts, and its uninitialised result; reads nothing.
std::tuple<Tensor, Tensor> empty_raw_values(const Tensor& effective, const Tensor& row_indices, std::int64_t rows,
                                            double a, double b, double p, bool variable,
                                            const OptionalTensor& excitability, double, std::string_view) {
  check_norm(kOp, Norm{a, b, p});
  require_dtype(kOp, "effective", effective, {at::kDouble});
  require_one_dimension(kOp, "effective", effective);
  require_contiguous(kOp, "effective", effective);
  require_dtype(kOp, "row_indices", row_indices, {at::kInt});
  require_shape_of(kOp, "row_indices", row_indices, "effective", effective);
  require_device_of(kOp, "row_indices", row_indices, "effective", effective);
  require_contiguous(kOp, "row_indices", row_indices);
  TORCH_CHECK(rows >= 1, "dendnorm::", kOp, ": rows must be at least 1, got ", rows);
  Tensor values = at::empty_like(effective);
  if (!given(excitability)) {
    return {values, variable ? at::empty({rows}, effective.options()) : at::empty({}, effective.options())};
  }
  require_dtype(kOp, "excitability", *excitability, {at::kDouble});
  require_device_of(kOp, "excitability", *excitability, "effective", effective);
  require_contiguous(kOp, "excitability", *excitability);
  TORCH_CHECK(excitability->sym_numel() == 1 || excitability->sym_numel() == rows, "dendnorm::", kOp,
              ": excitability must have 1 or ", rows, " entries, got ", excitability->sym_numel());
  return {values, at::empty_like(*excitability)};
}

std::tuple<Tensor, Tensor> raw_values(const Tensor& effective, const Tensor& row_indices, std::int64_t rows, double a,
                                      double b, double p, bool variable, const OptionalTensor& excitability,
                                      double start, std::string_view name) {
  auto [values, e] = empty_raw_values(effective, row_indices, rows, a, b, p, variable, excitability, start, name);
  const std::int64_t nnz = effective.numel();
  const auto* row = row_indices.const_data_ptr<std::int32_t>();
  for (std::int64_t k = 0; k < nnz; ++k) {
    TORCH_CHECK(row[k] >= 0 && row[k] < rows, "dendnorm::", kOp, ": row_indices must be in [0, ", rows, "), got ",
                row[k]);
  }
  const bool is_given = given(excitability);
  const RawOutcome outcome = dendnorm::raw_values(
      Norm{a, b, p}, variable, rows, nnz, row, effective.const_data_ptr<double>(),
      is_given ? excitability->const_data_ptr<double>() : nullptr, is_given ? excitability->numel() : 0, start,
      values.mutable_data_ptr<double>(), e.mutable_data_ptr<double>());
  TORCH_CHECK_VALUE(outcome.fault != RawFault::kZero,
                    "excitability of norm must not be 0 to represent the given weights, got 0");
  TORCH_CHECK_VALUE(outcome.fault != RawFault::kLength, "norm '", name,
                    "' must have n_i^a ||w_i||_p = |e| in every row to represent the given weights, got ",
                    outcome.needed, " in row ", outcome.row, " where e is ", outcome.e,
                    "; one excitability for each neuron (\"lp-variable:P\", \"weight_norm\", \"joint\") can");
  return {values, e};
}

// Found once, when a layer is made: by the host, wherever the tensors are.
std::tuple<Tensor, Tensor> raw_values_elsewhere(const Tensor& effective, const Tensor& row_indices, std::int64_t rows,
                                                double a, double b, double p, bool variable,
                                                const OptionalTensor& excitability, double start,
                                                std::string_view name) {
  const OptionalTensor e = given(excitability) ? OptionalTensor(excitability->cpu()) : std::nullopt;
  const auto [values, chosen] = raw_values(effective.cpu(), row_indices.cpu(), rows, a, b, p, variable, e, start, name);
  return {values.to(effective.device()), chosen.to(effective.device())};
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { m.impl("raw_values", raw_values); }
TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { m.impl("raw_values", raw_values_elsewhere); }
TORCH_LIBRARY_IMPL(dendnorm, CompositeExplicitAutograd, m) { m.impl("raw_values", raw_values_elsewhere); }
TORCH_LIBRARY_IMPL(dendnorm, Meta, m) { m.impl("raw_values", empty_raw_values); }

}  // namespace dendnorm::ops
