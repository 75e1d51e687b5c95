// The ops as C++ functions that go through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <tuple>

#include "core/norm.h"
#include "ops/layer.h"
#include "ops/schema.h"

namespace dendnorm::ops {

// Whether this build has a kernel of the op for a device.
inline bool has_kernel(const char* name, at::Device device) {
  if (device.is_cpu()) return true;
  const auto key = c10::computeDispatchKey(at::kFloat, at::kStrided, device);
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").hasKernelForDispatchKey(key);
}

inline at::Tensor call_sparse_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                     const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm) {
  static const Op<decltype(call_sparse_linear)> op("dendnorm::sparse_linear");
  return op(input, weight, bias, excitability, pattern, norm);
}

inline Tensor4 call_sparse_linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& weight, const OptionalTensor& excitability,
                                           const Pattern& pattern, const Norm& norm, std::array<bool, 4> mask) {
  static const Op<decltype(call_sparse_linear_backward)> op("dendnorm::sparse_linear_backward");
  return op(grad_output, input, weight, excitability, pattern, norm, mask);
}

inline at::Tensor call_effective_weight(const at::Tensor& weight, const OptionalTensor& excitability,
                                        const Pattern& pattern, const Norm& norm) {
  static const Op<decltype(call_effective_weight)> op("dendnorm::effective_weight");
  return op(weight, excitability, pattern, norm);
}

inline Tensor2 call_effective_weight_backward(const at::Tensor& grad, const at::Tensor& weight,
                                              const OptionalTensor& excitability, const Pattern& pattern,
                                              const Norm& norm, std::array<bool, 2> mask) {
  static const Op<decltype(call_effective_weight_backward)> op("dendnorm::effective_weight_backward");
  return op(grad, weight, excitability, pattern, norm, mask);
}

inline at::Tensor call_sampled_product(const at::Tensor& rows, const at::Tensor& columns, const Pattern& pattern) {
  static const Op<decltype(call_sampled_product)> op("dendnorm::sampled_product");
  return op(rows, columns, pattern);
}

inline void call_check_pattern(const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size,
                               std::string_view compressed_name, std::string_view indices_name) {
  using Signature = void(const at::Tensor&, const at::Tensor&, std::int64_t, std::string_view, std::string_view);
  static const Op<Signature> op("dendnorm::check_pattern");
  op(compressed, indices, size, compressed_name, indices_name);
}

using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Patterns below are known to be sound, and faults in values are raised at once.

inline Tensors3 call_transpose_pattern(const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size) {
  using Signature = Tensors3(const at::Tensor&, const at::Tensor&, std::int64_t, bool);
  static const Op<Signature> op("dendnorm::transpose_pattern");
  return op(compressed, indices, size, true);
}

inline at::Tensor call_pattern_mark(const at::Tensor& ccol_indices, const at::Tensor& row_indices) {
  static const Op<decltype(call_pattern_mark)> op("dendnorm::pattern_mark");
  return op(ccol_indices, row_indices);
}

inline at::Tensor call_weakest(const at::Tensor& score, std::int64_t k) {
  using Signature = at::Tensor(const at::Tensor&, std::int64_t, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::weakest");
  return op(score, k, std::nullopt);
}

inline Tensors3 call_excise(const at::Tensor& ccol_indices, const at::Tensor& row_indices, const at::Tensor& dropped,
                            std::int64_t k) {
  using Signature =
      Tensors3(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::int64_t, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::excise");
  return op(ccol_indices, row_indices, dropped, k, true, std::nullopt);
}

inline at::Tensor call_empty_positions(const at::Tensor& ccol_indices, const at::Tensor& row_indices, std::int64_t rows,
                                       std::int64_t k, std::int64_t seed, std::int64_t step, std::int64_t layer) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, std::int64_t, std::int64_t, std::int64_t,
                               std::int64_t, std::int64_t, bool);
  static const Op<Signature> op("dendnorm::empty_positions");
  return op(ccol_indices, row_indices, rows, k, seed, step, layer, true);
}

inline Tensors3 call_replace_connections(const at::Tensor& ccol_indices, const at::Tensor& row_indices,
                                         std::int64_t rows, const at::Tensor& dropped, const at::Tensor& keys) {
  using Signature = Tensors3(const at::Tensor&, const at::Tensor&, std::int64_t, const at::Tensor&, const at::Tensor&,
                             bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::replace_connections");
  return op(ccol_indices, row_indices, rows, dropped, keys, true, std::nullopt);
}

inline at::Tensor call_counter_normal(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer,
                                      at::ScalarType dtype, at::Device device) {
  using Signature = at::Tensor(std::int64_t, std::int64_t, std::int64_t, std::int64_t, at::ScalarType, at::Device);
  static const Op<Signature> op("dendnorm::counter_normal");
  return op(n, seed, step, layer, dtype, device);
}

inline std::tuple<at::Tensor, at::Tensor> call_raw_values(const at::Tensor& effective, const at::Tensor& row_indices,
                                                          std::int64_t rows, const Norm& norm, bool variable,
                                                          const OptionalTensor& excitability, double start,
                                                          std::string_view name) {
  using Signature =
      std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, std::int64_t, double, double, double,
                                         bool, const OptionalTensor&, double, std::string_view);
  static const Op<Signature> op("dendnorm::raw_values");
  return op(effective, row_indices, rows, norm.a, norm.b, norm.p, variable, excitability, start, name);
}

inline void call_carry_(at::Tensor values, const at::Tensor& source, const at::Tensor& fill) {
  using Signature = void(at::Tensor&, const at::Tensor&, const at::Tensor&, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::carry_");
  op(values, source, fill, true, std::nullopt);
}

}  // namespace dendnorm::ops
