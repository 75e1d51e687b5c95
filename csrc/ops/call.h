// The ops as C++ functions that go through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <cstdint>
#include <optional>
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

// The device on which to call an op for tensors of `device`: that one, or the CPU where this build has no kernel for
// it. Patterns and draws have the same bits on all of them.
inline at::Device home_of(const char* name, at::Device device) { return has_kernel(name, device) ? device : at::kCPU; }

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

// Patterns below are known to be sound unless it is said otherwise, and faults in values are raised at once where no
// status is given.

inline Tensors3 call_transpose_pattern(const at::Tensor& compressed, const at::Tensor& indices, std::int64_t size) {
  using Signature = Tensors3(const at::Tensor&, const at::Tensor&, std::int64_t, bool);
  static const Op<Signature> op("dendnorm::transpose_pattern");
  return op(compressed, indices, size, true);
}

inline at::Tensor call_pattern_mark(const at::Tensor& ccol_indices, const at::Tensor& row_indices) {
  static const Op<decltype(call_pattern_mark)> op("dendnorm::pattern_mark");
  return op(ccol_indices, row_indices);
}

inline at::Tensor call_weakest(const at::Tensor& score, std::int64_t k, const OptionalTensor& status = {}) {
  using Signature = at::Tensor(const at::Tensor&, std::int64_t, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::weakest");
  return op(score, k, status);
}

inline Tensors3 call_excise(const at::Tensor& ccol_indices, const at::Tensor& row_indices, const at::Tensor& dropped,
                            std::int64_t k, bool sound = true, const OptionalTensor& status = {}) {
  using Signature =
      Tensors3(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::int64_t, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::excise");
  return op(ccol_indices, row_indices, dropped, k, sound, status);
}

inline at::Tensor call_empty_positions(const at::Tensor& ccol_indices, const at::Tensor& row_indices, std::int64_t rows,
                                       std::int64_t k, std::int64_t seed, std::int64_t step, std::int64_t layer) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, std::int64_t, std::int64_t, std::int64_t,
                               std::int64_t, std::int64_t, bool);
  static const Op<Signature> op("dendnorm::empty_positions");
  return op(ccol_indices, row_indices, rows, k, seed, step, layer, true);
}

inline Tensors3 call_replace_connections(const at::Tensor& ccol_indices, const at::Tensor& row_indices,
                                         std::int64_t rows, const at::Tensor& dropped, const at::Tensor& keys,
                                         bool sound = true, const OptionalTensor& status = {}) {
  using Signature = Tensors3(const at::Tensor&, const at::Tensor&, std::int64_t, const at::Tensor&, const at::Tensor&,
                             bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::replace_connections");
  return op(ccol_indices, row_indices, rows, dropped, keys, sound, status);
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

inline at::Tensor call_spread(const at::Tensor& values) {
  static const Op<decltype(call_spread)> op("dendnorm::spread");
  return op(values);
}

inline Tensor2 call_pattern_of_keys(const at::Tensor& keys, std::int64_t rows, std::int64_t cols) {
  static const Op<decltype(call_pattern_of_keys)> op("dendnorm::pattern_of_keys");
  return op(keys, rows, cols);
}

inline void call_check_view(const at::Tensor& compressed, const at::Tensor& indices, std::int64_t segments,
                            std::int64_t size, std::string_view compressed_name, std::string_view indices_name) {
  static const Op<decltype(call_check_view)> op("dendnorm::check_view");
  op(compressed, indices, segments, size, compressed_name, indices_name);
}

inline Tensors3 call_largest_connections(const at::Tensor& dense, std::optional<std::int64_t> nnz,
                                         std::string_view name) {
  static const Op<decltype(call_largest_connections)> op("dendnorm::largest_connections");
  return op(dense, nnz, name);
}

inline Tensors3 call_connections_of_csr(const at::Tensor& crow_indices, const at::Tensor& col_indices,
                                        const at::Tensor& values, const OptionalTensor& bias, std::int64_t rows,
                                        std::int64_t cols) {
  static const Op<decltype(call_connections_of_csr)> op("dendnorm::connections_of_csr");
  return op(crow_indices, col_indices, values, bias, rows, cols);
}

using Tensors5 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Tensors8 =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline Tensors5 call_plan_excision(const at::Tensor& ccol_indices, const at::Tensor& row_indices,
                                   const at::Tensor& importance, std::int64_t k) {
  using Signature =
      Tensors5(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::int64_t, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::plan_excision");
  return op(ccol_indices, row_indices, importance, k, true, std::nullopt);
}

inline Tensors8 call_plan_rewiring(const at::Tensor& ccol_indices, const at::Tensor& row_indices, std::int64_t rows,
                                   const at::Tensor& dropped, std::int64_t k, const at::Tensor& keys,
                                   const at::Tensor& values, at::ScalarType dtype) {
  using Signature = Tensors8(const at::Tensor&, const at::Tensor&, std::int64_t, const at::Tensor&, std::int64_t,
                             const at::Tensor&, const at::Tensor&, at::ScalarType, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::plan_rewiring");
  return op(ccol_indices, row_indices, rows, dropped, k, keys, values, dtype, true, std::nullopt);
}

inline void call_carry_(at::Tensor values, const at::Tensor& source, const at::Tensor& fill) {
  using Signature = void(at::Tensor&, const at::Tensor&, const at::Tensor&, bool, const OptionalTensor&);
  static const Op<Signature> op("dendnorm::carry_");
  op(values, source, fill, true, std::nullopt);
}

}  // namespace dendnorm::ops
