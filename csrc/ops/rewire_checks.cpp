#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "ops/pattern.h"
#include "ops/rewire.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

void check_draw(const char* op, std::int64_t seed, std::int64_t step, std::int64_t layer) {
  TORCH_CHECK(seed >= 0, "dendnorm::", op, ": seed must be in [0, 2^63), got ", seed);
  TORCH_CHECK(step >= 0, "dendnorm::", op, ": step must be in [0, 2^63), got ", step);
  TORCH_CHECK(0 <= layer && layer <= 0xFFFFFFFF, "dendnorm::", op, ": layer must be in [0, 2^32), got ", layer);
}

void check_status(const char* op, const Tensor& status) {
  require_dtype(op, "status", status, {at::kLong});
  TORCH_CHECK(status.dim() == 1 && status.sym_size(0) == kStatusWords && status.is_contiguous(), "dendnorm::", op,
              ": status must be contiguous of shape (", kStatusWords, ",), got shape ", status.sym_sizes());
}

void check_status(const char* op, const OptionalTensor& status, const char* like_name, const Tensor& like) {
  if (!given(status)) return;
  check_status(op, *status);
  require_device_of(op, "status", *status, like_name, like);
}

void check_dropped(const char* op, const Tensor& dropped, const Tensor& row_indices) {
  require_one_dimension(op, "dropped", dropped);
  require_dtype(op, "dropped", dropped, {at::kBool});
  require_device_of(op, "dropped", dropped, "row_indices", row_indices);
  require_one_for_each(op, "dropped", dropped, row_indices.sym_size(0), "of row_indices");
}

}  // namespace

Tensor empty_weakest(const Tensor& score, std::int64_t k, const OptionalTensor& status) {
  require_one_dimension("weakest", "score", score);
  require_dtype("weakest", "score", score, {at::kFloat, at::kDouble});
  require_count("weakest", k, score.sym_size(0), "nnz");
  check_status("weakest", status, "score", score);
  return at::empty_symint(score.sym_sizes(), score.options().dtype(at::kBool));
}

std::tuple<Tensor, Tensor, Tensor> empty_excise(const Tensor& ccol_indices, const Tensor& row_indices,
                                                const Tensor& dropped, std::int64_t k, const OptionalTensor& status) {
  const char* op = "excise";
  check_pattern_tensors(op, ccol_indices, row_indices, kAnyRows, "rows", {});
  check_dropped(op, dropped, row_indices);
  const auto nnz = row_indices.sym_size(0);
  require_count(op, k, nnz, "nnz");
  check_status(op, status, "row_indices", row_indices);
  return {at::empty_symint(ccol_indices.sym_sizes(), ccol_indices.options()),
          at::empty_symint({nnz - k}, row_indices.options()), at::empty({k}, row_indices.options())};
}

Tensor empty_positions_result(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                              std::int64_t seed, std::int64_t step, std::int64_t layer) {
  check_pattern_tensors("empty_positions", ccol_indices, row_indices, rows, "rows", {});
  check_draw("empty_positions", seed, step, layer);
  const auto empty = (ccol_indices.sym_size(0) - 1) * rows - row_indices.sym_size(0);
  require_count("empty_positions", k, empty, "number of empty positions");
  return at::empty({k}, row_indices.options().dtype(at::kLong));
}

std::tuple<Tensor, Tensor, Tensor> empty_replacement(const Tensor& ccol_indices, const Tensor& row_indices,
                                                     std::int64_t rows, const Tensor& dropped, const Tensor& keys,
                                                     const OptionalTensor& status) {
  const char* op = "replace_connections";
  check_pattern_tensors(op, ccol_indices, row_indices, rows, "rows", {});
  check_dropped(op, dropped, row_indices);
  require_one_dimension(op, "keys", keys);
  require_dtype(op, "keys", keys, {at::kLong});
  require_device_of(op, "keys", keys, "row_indices", row_indices);
  check_status(op, status, "row_indices", row_indices);
  return {at::empty_symint(ccol_indices.sym_sizes(), ccol_indices.options()),
          at::empty_symint(row_indices.sym_sizes(), row_indices.options()),
          at::empty_symint(row_indices.sym_sizes(), row_indices.options())};
}

Tensor empty_normal(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer, at::ScalarType dtype,
                    at::Device device) {
  TORCH_CHECK(n >= 0, "dendnorm::counter_normal: n must be at least 0, got ", n);
  check_draw("counter_normal", seed, step, layer);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble,
              "dendnorm::counter_normal: dtype must be float32 or float64, got ", dtype_name(dtype));
  return at::empty({n}, at::TensorOptions().dtype(dtype).device(device));
}

void check_carry(const Tensor& values, const Tensor& source, const Tensor& fill, const OptionalTensor& status) {
  require_one_dimension("carry_", "values", values);
  require_one_dimension("carry_", "source", source);
  require_dtype("carry_", "source", source, {at::kInt});
  require_device_of("carry_", "source", source, "values", values);
  require_one_for_each("carry_", "source", source, values.sym_size(0), "of values");
  TORCH_CHECK(fill.dim() <= 1, "dendnorm::carry_: fill must have shape () or (number of new entries,), got ",
              fill.sym_sizes());
  require_dtype_of("carry_", "fill", fill, "values", values);
  require_device_of("carry_", "fill", fill, "values", values);
  const std::size_t size = values.element_size();
  TORCH_CHECK(size == 1 || size == 2 || size == 4 || size == 8 || size == 16,
              "dendnorm::carry_: values must have a dtype of 1, 2, 4, 8 or 16 bytes, got ",
              dtype_name(values.scalar_type()));
  check_status("carry_", status, "values", values);
}

void check_assign(const Tensor& values, const Tensor& new_values, const OptionalTensor& status) {
  require_dtype_of("assign_", "new_values", new_values, "values", values);
  require_device_of("assign_", "new_values", new_values, "values", values);
  require_shape_of("assign_", "new_values", new_values, "values", values);
  check_status("assign_", status, "values", values);
}

void raise_fault(const Status& status) {
  if (status.code == kClear) return;
  const auto& [first, second, third] = status.detail;
  const std::int64_t position = status.position();
  switch (status.fault()) {
    case Fault::kNan:
      TORCH_CHECK(false, "dendnorm::weakest: score must be a number everywhere, got nan at position ", position);
    case Fault::kDropped:
      TORCH_CHECK(false, "dendnorm::excise: dropped must be true for k = ", first, " connections, got ", second);
    case Fault::kCount:
      TORCH_CHECK(false, "dendnorm::replace_connections: keys must have one entry for each of the ", first,
                  " dropped connections, got ", second);
    case Fault::kKey:
      TORCH_CHECK(0 <= first && first < third,
                  "dendnorm::replace_connections: keys must be in [0, rows * columns) = [0, ", third, "), got ", first,
                  " at position ", position);
      TORCH_CHECK(false, "dendnorm::replace_connections: keys must be strictly ascending, got ", first, " after ",
                  second, " at position ", position);
    case Fault::kOccupied:
      TORCH_CHECK(false,
                  "dendnorm::replace_connections: keys must be empty positions once the dropped ones are, got the "
                  "connection ",
                  first, " (row ", first % second, ", column ", first / second, ") at position ", position);
    case Fault::kOtherPattern: TORCH_CHECK(false, "layers that share its weight must have its pattern, got another");
    case Fault::kValue:
      TORCH_CHECK(false, "values of new connections must be finite, got nan or infinite values, the first at position ",
                  position);
  }
  TORCH_CHECK(false, "dendnorm::raise_fault: status must begin with ", kClear, " or the code of a fault, got ",
              status.code);
}

void raise_fault(const Tensor& status) {
  check_status("raise_fault", status);
  const Tensor words = status.cpu();
  const std::int64_t* word = words.const_data_ptr<std::int64_t>();
  raise_fault({word[0], {word[1], word[2], word[3]}});
}

}  // namespace dendnorm::ops
