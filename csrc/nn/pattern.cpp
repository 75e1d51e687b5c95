#include "nn/pattern.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "ops/call.h"

namespace dendnorm::nn {

using at::Tensor;

at::Device home_of(const char* op, at::Device device) { return ops::has_kernel(op, device) ? device : at::kCPU; }

std::pair<Tensor, Tensor> pattern_of_keys(const Tensor& keys, int64_t rows, int64_t cols) {
  const Tensor starts = at::arange(cols + 1, keys.options()) * rows;
  return {at::searchsorted(keys, starts).to(at::kInt), keys.remainder(std::max<int64_t>(rows, 1)).to(at::kInt)};
}

Edges edges_of(const Tensor& ccol_indices, const Tensor& row_indices) {
  const Tensor columns = at::arange(ccol_indices.numel() - 1, ccol_indices.options().dtype(at::kLong));
  return {row_indices.to(at::kLong),
          at::repeat_interleave(columns, ccol_indices.diff().to(at::kLong), 0, row_indices.numel())};
}

std::tuple<Tensor, Tensor, Tensor> transposed(const Tensor& compressed, const Tensor& indices, int64_t size) {
  const at::Device device = compressed.device(), home = home_of("dendnorm::transpose_pattern", device);
  const auto [pointers, others, perm] = ops::call_transpose_pattern(compressed.to(home), indices.to(home), size);
  return {pointers.to(device), others.to(device), perm.to(device)};
}

Tensor mark_of(const Tensor& ccol_indices, const Tensor& row_indices) {
  const at::Device device = ccol_indices.device(), home = home_of("dendnorm::pattern_mark", device);
  return ops::call_pattern_mark(ccol_indices.to(home), row_indices.to(home)).to(device);
}

Tensor as_index(const char* name, const Tensor& values) {
  TORCH_CHECK_TYPE(values.defined(), name, " must be a tensor, got none");
  TORCH_CHECK_TYPE(values.scalar_type() == at::kInt || values.scalar_type() == at::kLong, name,
                   " must be of dtype int32 or int64, got ", values.scalar_type());
  TORCH_CHECK_VALUE(values.dim() == 1, name, " must have one dimension, got shape ", values.sizes());
  if (values.scalar_type() == at::kLong && values.numel() > 0) {
    const auto [low, high] = values.aminmax();
    const auto lowest = low.item<int64_t>(), highest = high.item<int64_t>();
    TORCH_CHECK_VALUE(lowest >= 0 && highest <= 2147483647, name, " must be in [0, 2^31), got ",
                      lowest < 0 ? lowest : highest);
  }
  return values.to(at::kInt).contiguous();
}

void check_compressed(const Tensor& compressed, const Tensor& indices, int64_t segments, int64_t size,
                      const char* compressed_name, const char* indices_name) {
  TORCH_CHECK_VALUE(compressed.numel() == segments + 1, compressed_name, " must have ", segments,
                    " + 1 = ", segments + 1, " entries, got ", compressed.numel());
  TORCH_CHECK_VALUE(compressed.device() == indices.device(), compressed_name, " and ", indices_name,
                    " must be on one device, got ", compressed.device(), ", ", indices.device());
  const at::Device home = home_of("dendnorm::check_pattern", compressed.device());
  try {
    ops::call_check_pattern(compressed.to(home), indices.to(home), size, compressed_name, indices_name);
  } catch (const c10::Error& error) {
    TORCH_CHECK_VALUE(false, error.what_without_backtrace());
  }
}

}  // namespace dendnorm::nn
