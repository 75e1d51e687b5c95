// Hands the tensors of a rewiring to cuda/.
#include "cuda/cub.h"
#include "cuda/rewire.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "ops/on_cuda.h"
#include "ops/pattern.h"
#include "ops/rewire.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

// The caller's status or, where there is none, one of our own that is waited for in the end.
class Faults {
 public:
  Faults(const OptionalTensor& status, const Tensor& like)
      : own_(!given(status)),
        status_(own_ ? at::full({kStatusWords}, kClear, like.options().dtype(at::kLong)) : *status) {}
  Status* data() const { return reinterpret_cast<Status*>(status_.mutable_data_ptr<std::int64_t>()); }
  void settle() const {
    if (own_) raise_fault(status_);
  }

 private:
  bool own_;
  Tensor status_;
};

const Status* data_of(const OptionalTensor& status) {
  return given(status) ? reinterpret_cast<const Status*>(status->const_data_ptr<std::int64_t>()) : nullptr;
}

template <class T>
void run_weakest(const Tensor& score, std::int64_t k, const Tensor& chosen, const Faults& faults) {
  const std::int64_t n = score.numel();
  const Tensor workspace = device_memory(cuda::weakest_workspace<T>(n), score);
  check_launch(cuda::weakest(score.const_data_ptr<T>(), n, k, static_cast<std::uint8_t*>(chosen.mutable_data_ptr()),
                             faults.data(), bytes_of(workspace), current_stream()));
}

Tensor weakest(const Tensor& score, std::int64_t k, const OptionalTensor& status) {
  const c10::cuda::CUDAGuard guard(score.device());
  const Tensor chosen = empty_weakest(score, k, status), values = score.contiguous();
  const Faults faults(status, score);
  if (score.scalar_type() == at::kFloat) {
    run_weakest<float>(values, k, chosen, faults);
  } else {
    run_weakest<double>(values, k, chosen, faults);
  }
  faults.settle();
  return chosen;
}

// The arguments of excise and replace_connections, contiguous.
struct Dropping {
  Tensor ccol_indices, row_indices, dropped;

  Dropping(const char* op, const Tensor& ccol, const Tensor& row, const Tensor& mask, std::int64_t rows, bool sound)
      : ccol_indices(ccol.contiguous()), row_indices(row.contiguous()), dropped(mask.contiguous()), rows_(rows) {
    if (!sound) check_pattern_content_cuda(op, ccol_indices, row_indices, rows, {});
  }
  cuda::Dropping data() const {
    return {rows_,
            ccol_indices.numel() - 1,
            row_indices.numel(),
            ccol_indices.const_data_ptr<std::int32_t>(),
            row_indices.const_data_ptr<std::int32_t>(),
            static_cast<const std::uint8_t*>(dropped.const_data_ptr())};
  }

 private:
  std::int64_t rows_;
};

std::tuple<Tensor, Tensor, Tensor> excise(const Tensor& ccol_indices, const Tensor& row_indices, const Tensor& dropped,
                                          std::int64_t k, bool sound, const OptionalTensor& status) {
  const c10::cuda::CUDAGuard guard(row_indices.device());
  auto result = empty_excise(ccol_indices, row_indices, dropped, k, status);
  const Dropping dropping("excise", ccol_indices, row_indices, dropped, kAnyRows, sound);
  const Faults faults(status, row_indices);
  const Tensor workspace = device_memory(cuda::excise_workspace(row_indices.numel()), row_indices);
  check_launch(cuda::excise(dropping.data(), k, std::get<0>(result).mutable_data_ptr<std::int32_t>(),
                            std::get<1>(result).mutable_data_ptr<std::int32_t>(),
                            std::get<2>(result).mutable_data_ptr<std::int32_t>(), faults.data(), bytes_of(workspace),
                            current_stream()));
  faults.settle();
  return result;
}

Tensor empty_positions(const Tensor& ccol_indices, const Tensor& row_indices, std::int64_t rows, std::int64_t k,
                       std::int64_t seed, std::int64_t step, std::int64_t layer, bool sound) {
  const c10::cuda::CUDAGuard guard(row_indices.device());
  Tensor keys = empty_positions_result(ccol_indices, row_indices, rows, k, seed, step, layer);
  const Tensor pointers = ccol_indices.contiguous(), entries = row_indices.contiguous();
  if (!sound) check_pattern_content_cuda("empty_positions", pointers, entries, rows, {});
  const std::int64_t cols = pointers.numel() - 1, nnz = entries.numel();
  TORCH_CHECK(k <= cuda::kMaxSorted || k == rows * cols - nnz, "dendnorm::empty_positions: k must be at most ",
              cuda::kMaxSorted, " on CUDA, or all empty positions, got ", k);
  std::size_t needed = 0;
  check_launch(cuda::empty_positions_workspace(rows * cols - nnz, k, &needed));
  const Tensor workspace = device_memory(needed, entries);
  const Stream random = stream_of(seed, step, static_cast<std::uint32_t>(layer), Purpose::kPosition);
  check_launch(cuda::empty_positions(pointers.const_data_ptr<std::int32_t>(), entries.const_data_ptr<std::int32_t>(),
                                     nnz, rows, cols, k, random, keys.mutable_data_ptr<std::int64_t>(),
                                     bytes_of(workspace), current_stream()));
  return keys;
}

std::tuple<Tensor, Tensor, Tensor> replace_connections(const Tensor& ccol_indices, const Tensor& row_indices,
                                                       std::int64_t rows, const Tensor& dropped, const Tensor& keys,
                                                       bool sound, const OptionalTensor& status) {
  const c10::cuda::CUDAGuard guard(row_indices.device());
  auto result = empty_replacement(ccol_indices, row_indices, rows, dropped, keys, status);
  const Dropping dropping("replace_connections", ccol_indices, row_indices, dropped, rows, sound);
  const Faults faults(status, row_indices);
  const Tensor key_values = keys.contiguous();
  const Tensor workspace = device_memory(cuda::replace_connections_workspace(row_indices.numel()), row_indices);
  check_launch(cuda::replace_connections(
      dropping.data(), key_values.const_data_ptr<std::int64_t>(), keys.numel(),
      std::get<0>(result).mutable_data_ptr<std::int32_t>(), std::get<1>(result).mutable_data_ptr<std::int32_t>(),
      std::get<2>(result).mutable_data_ptr<std::int32_t>(), faults.data(), bytes_of(workspace), current_stream()));
  faults.settle();
  return result;
}

Tensor counter_normal(std::int64_t n, std::int64_t seed, std::int64_t step, std::int64_t layer, at::ScalarType dtype,
                      at::Device device) {
  const c10::cuda::OptionalCUDAGuard guard(device);
  Tensor values = empty_normal(n, seed, step, layer, dtype, device);
  const Stream random = stream_of(seed, step, static_cast<std::uint32_t>(layer), Purpose::kValue);
  if (dtype == at::kFloat) {
    check_launch(cuda::counter_normal(random, n, values.mutable_data_ptr<float>(), current_stream()));
  } else {
    check_launch(cuda::counter_normal(random, n, values.mutable_data_ptr<double>(), current_stream()));
  }
  return values;
}

void check_source_on_device(const Tensor& source, const Tensor& fill) {
  const Tensor found = at::empty({2}, source.options().dtype(at::kLong));
  check_launch(cuda::check_source(source.const_data_ptr<std::int32_t>(), source.numel(),
                                  static_cast<unsigned long long*>(found.mutable_data_ptr()), current_stream()));
  const Tensor words = found.cpu();
  const auto* word = words.const_data_ptr<std::int64_t>();
  if (word[0] != 0 || (fill.dim() == 1 && fill.numel() != word[1])) check_source(source.cpu(), fill);
}

void carry(Tensor& values, const Tensor& source, const Tensor& fill, bool sound, const OptionalTensor& status) {
  check_carry(values, source, fill, status);
  const c10::cuda::CUDAGuard guard(values.device());
  const Tensor sources = source.contiguous(), fills = fill.contiguous(), old = values.contiguous();
  if (!sound) check_source_on_device(sources, fill);
  const bool fill_each = fill.dim() == 1;
  const std::int64_t n = old.numel();
  const Tensor result = at::empty_like(old), workspace = device_memory(cuda::carry_workspace(n, fill_each), old);
  check_launch(cuda::carry(old.const_data_ptr(), sources.const_data_ptr<std::int32_t>(), n, fills.const_data_ptr(),
                           fill_each, old.element_size(), result.mutable_data_ptr(), data_of(status),
                           bytes_of(workspace), current_stream()));
  overwrite(values, result);
}

void assign(Tensor& values, const Tensor& new_values, const OptionalTensor& status) {
  check_assign(values, new_values, status);
  if (!given(status)) return overwrite(values, new_values);
  const c10::cuda::CUDAGuard guard(values.device());
  const Tensor others = new_values.contiguous(), target = values.contiguous();
  check_launch(cuda::assign(target.mutable_data_ptr(), others.const_data_ptr(), others.numel(), others.element_size(),
                            data_of(status), current_stream()));
  if (!target.is_same(values)) return overwrite(values, target);
  if (!values.is_inference()) values.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) {
  m.impl("weakest", weakest);
  m.impl("excise", excise);
  m.impl("empty_positions", empty_positions);
  m.impl("replace_connections", replace_connections);
  m.impl("counter_normal", counter_normal);
  m.impl("carry_", carry);
  m.impl("assign_", assign);
  m.impl("raise_fault", static_cast<void (*)(const Tensor&)>(raise_fault));
}

}  // namespace dendnorm::ops
