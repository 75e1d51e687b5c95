// The op frozen_linear: on the CPU, for Meta, and refused where a derivative is asked for.
#include "ops/frozen.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <utility>

#include "cpu/kernels.h"
#include "ops/layer.h"
#include "ops/layer_ops.h"
#include "ops/layer_on_cpu.h"
#include "ops/schema.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

constexpr const char* kOp = "frozen_linear";

template <class T>
void compute(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& crow_indices,
             const Tensor& col_indices, const Tensor& output) {
  prefer_large_pages(output);
  const Matrix x(input), y(output);
  cpu::Forward<T> f{};
  f.samples = samples_of(input);
  f.inputs = input.size(-1);
  f.outputs = output.size(-1);
  f.connections = weight.size(0);
  f.x = x.activations;
  f.y = y.activations;
  f.rows.start = crow_indices.const_data_ptr<std::int32_t>();
  if (col_indices.scalar_type() == at::kInt) {
    f.rows.index = col_indices.const_data_ptr<std::int32_t>();
  } else {
    f.narrow = reinterpret_cast<const std::uint16_t*>(col_indices.const_data_ptr<std::int16_t>());
  }
  f.values = weight.const_data_ptr<T>();
  f.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  run_forward(f);
}

Tensor frozen_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Tensor& crow_indices,
                     const Tensor& col_indices, std::int64_t in_features) {
  const Tensor output = empty_frozen_linear(input, weight, bias, crow_indices, col_indices, in_features);
  const auto* start = crow_indices.const_data_ptr<std::int32_t>();
  TORCH_CHECK(start[0] == 0 && start[crow_indices.size(0) - 1] == weight.size(0), "dendnorm::", kOp,
              ": crow_indices must go from 0 to the ", weight.size(0), " connections of weight, got ", start[0], " to ",
              start[crow_indices.size(0) - 1]);
  const Tensor values = made_contiguous(weight), shift = made_contiguous(or_undefined(bias));
  with_values(weight, [&](auto t) { compute<decltype(t)>(input, values, shift, crow_indices, col_indices, output); });
  return output;
}

Tensor without_derivative(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const Tensor& crow_indices, const Tensor& col_indices, std::int64_t in_features) {
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::compute_requires_grad(input, weight, or_undefined(bias)),
                              "dendnorm::", kOp,
                              ": a frozen layer has no derivatives, got an input, weight or bias that requires a ",
                              "gradient; call it under torch.no_grad() or torch.inference_mode(), or train the ",
                              "SparseLinear that it was made of");
  static const Op<decltype(frozen_linear)> op("dendnorm::frozen_linear");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op(input, weight, bias, crow_indices, col_indices, in_features);
}

}  // namespace

Tensor empty_frozen_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& crow_indices, const Tensor& col_indices, std::int64_t in_features) {
  require_dtype(kOp, "weight", weight, {at::kFloat, at::kDouble});
  require_one_dimension(kOp, "weight", weight);
  require_dtype(kOp, "crow_indices", crow_indices, {at::kInt});
  require_dtype(kOp, "col_indices", col_indices, {at::kInt, at::kShort});
  for (const auto& [name, indices] : {std::pair{"crow_indices", crow_indices}, std::pair{"col_indices", col_indices}}) {
    require_one_dimension(kOp, name, indices);
    require_device_of(kOp, name, indices, "weight", weight);
    require_contiguous(kOp, name, indices);
  }
  require_one_for_each(kOp, "col_indices", col_indices, weight.sym_size(0), "connections of weight");
  TORCH_CHECK(crow_indices.sym_size(0) >= 1, "dendnorm::", kOp,
              ": crow_indices must have out_features + 1 entries, got none");
  TORCH_CHECK(in_features >= 0 && (col_indices.scalar_type() == at::kInt || in_features <= 65536), "dendnorm::", kOp,
              ": in_features must be at least 0 and, where col_indices has int16, at most 65536, got ", in_features);
  const c10::SymInt outputs = crow_indices.sym_size(0) - 1;
  return empty_product(kOp, input, weight, bias, in_features, outputs);
}

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) { m.impl(kOp, frozen_linear); }
TORCH_LIBRARY_IMPL(dendnorm, Meta, m) { m.impl(kOp, empty_frozen_linear); }
TORCH_LIBRARY_IMPL(dendnorm, Autograd, m) { m.impl(kOp, without_derivative); }

}  // namespace dendnorm::ops
