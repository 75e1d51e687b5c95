#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
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

void check_vector(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 1, "dendnorm::", op, ": ", name, " must be one-dimensional, got shape ",
              tensor.sym_sizes());
}

void check_dtype(const char* op, const char* name, const Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK(tensor.scalar_type() == expected, "dendnorm::", op, ": ", name, " must have dtype ",
              c10::getDtypeNames(expected).first, ", got ", c10::getDtypeNames(tensor.scalar_type()).first);
}

void check_device(const char* op, const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  TORCH_CHECK(tensor.device() == like.device(), "dendnorm::", op, ": ", name, " must be on the device of ", like_name,
              ", ", like.device(), ", got ", tensor.device());
}

void check_status(const char* op, const Tensor& status) {
  check_dtype(op, "status", status, at::kLong);
  TORCH_CHECK(status.dim() == 1 && status.sym_size(0) == kStatusWords && status.is_contiguous(), "dendnorm::", op,
              ": status must be contiguous of shape (", kStatusWords, ",), got shape ", status.sym_sizes());
}

void check_status(const char* op, const OptionalTensor& status, const char* like_name, const Tensor& like) {
  if (!given(status)) return;
  check_status(op, *status);
  check_device(op, "status", *status, like_name, like);
}

void check_dropped(const char* op, const Tensor& dropped, const Tensor& row_indices) {
  check_vector(op, "dropped", dropped);
  check_dtype(op, "dropped", dropped, at::kBool);
  check_device(op, "dropped", dropped, "row_indices", row_indices);
  TORCH_CHECK(dropped.sym_size(0) == row_indices.sym_size(0), "dendnorm::", op,
              ": dropped must have one entry for each of the ", row_indices.sym_size(0), " of row_indices, got ",
              dropped.sym_size(0));
}

}  // namespace

Tensor empty_weakest(const Tensor& score, std::int64_t k, const OptionalTensor& status) {
  check_vector("weakest", "score", score);
  TORCH_CHECK(score.scalar_type() == at::kFloat || score.scalar_type() == at::kDouble,
              "dendnorm::weakest: score must have dtype float32 or float64, got ",
              c10::getDtypeNames(score.scalar_type()).first);
  TORCH_CHECK(k >= 0 && score.sym_size(0) >= k, "dendnorm::weakest: k must be in [0, nnz] = [0, ", score.sym_size(0),
              "], got ", k);
  check_status("weakest", status, "score", score);
  return at::empty_symint(score.sym_sizes(), score.options().dtype(at::kBool));
}

std::tuple<Tensor, Tensor, Tensor> empty_excise(const Tensor& ccol_indices, const Tensor& row_indices,
                                                const Tensor& dropped, std::int64_t k, const OptionalTensor& status) {
  const char* op = "excise";
  check_pattern_tensors(op, ccol_indices, row_indices, kAnyRows, "rows", {});
  check_dropped(op, dropped, row_indices);
  const auto nnz = row_indices.sym_size(0);
  TORCH_CHECK(k >= 0 && nnz >= k, "dendnorm::excise: k must be in [0, nnz] = [0, ", nnz, "], got ", k);
  check_status(op, status, "row_indices", row_indices);
  return {at::empty_symint(ccol_indices.sym_sizes(), ccol_indices.options()),
          at::empty_symint({nnz - k}, row_indices.options()), at::empty({k}, row_indices.options())};
}

Tensor empty_positions_result(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                              std::int64_t seed, std::int64_t step, std::int64_t layer) {
  check_pattern_tensors("empty_positions", ccol_indices, row_indices, rows, "rows", {});
  check_draw("empty_positions", seed, step, layer);
  const auto empty = (ccol_indices.sym_size(0) - 1) * rows - row_indices.sym_size(0);
  TORCH_CHECK(k >= 0, "dendnorm::empty_positions: k must be at least 0, got ", k);
  TORCH_CHECK(empty >= k, "dendnorm::empty_positions: k must be in [0, number of empty positions] = [0, ", empty,
              "], got ", k);
  return at::empty({k}, row_indices.options().dtype(at::kLong));
}

std::tuple<Tensor, Tensor, Tensor> empty_replacement(const Tensor& ccol_indices, const Tensor& row_indices,
                                                     std::int64_t rows, const Tensor& dropped, const Tensor& keys,
                                                     const OptionalTensor& status) {
  const char* op = "replace_connections";
  check_pattern_tensors(op, ccol_indices, row_indices, rows, "rows", {});
  check_dropped(op, dropped, row_indices);
  check_vector(op, "keys", keys);
  check_dtype(op, "keys", keys, at::kLong);
  check_device(op, "keys", keys, "row_indices", row_indices);
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
              "dendnorm::counter_normal: dtype must be float32 or float64, got ", c10::getDtypeNames(dtype).first);
  return at::empty({n}, at::TensorOptions().dtype(dtype).device(device));
}

void check_carry(const Tensor& values, const Tensor& source, const Tensor& fill, const OptionalTensor& status) {
  check_vector("carry_", "values", values);
  check_vector("carry_", "source", source);
  check_dtype("carry_", "source", source, at::kInt);
  check_device("carry_", "source", source, "values", values);
  TORCH_CHECK(source.sym_size(0) == values.sym_size(0), "dendnorm::carry_: source must have one entry for each of the ",
              values.sym_size(0), " of values, got ", source.sym_size(0));
  TORCH_CHECK(fill.dim() <= 1, "dendnorm::carry_: fill must have shape () or (number of new entries,), got ",
              fill.sym_sizes());
  check_dtype("carry_", "fill", fill, values.scalar_type());
  check_device("carry_", "fill", fill, "values", values);
  const std::size_t size = values.element_size();
  TORCH_CHECK(size == 1 || size == 2 || size == 4 || size == 8 || size == 16,
              "dendnorm::carry_: values must have a dtype of 1, 2, 4, 8 or 16 bytes, got ", values.scalar_type());
  check_status("carry_", status, "values", values);
}

void check_assign(const Tensor& values, const Tensor& new_values, const OptionalTensor& status) {
  check_dtype("assign_", "new_values", new_values, values.scalar_type());
  check_device("assign_", "new_values", new_values, "values", values);
  TORCH_CHECK(new_values.sym_sizes().equals(values.sym_sizes()),
              "dendnorm::assign_: new_values must have values' shape, ", values.sym_sizes(), ", got ",
              new_values.sym_sizes());
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
