// Hands patterns to cuda/.
#include "cuda/pattern.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "ops/on_cuda.h"
#include "ops/pattern.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

void check_pattern_op(const Tensor& compressed, const Tensor& indices, std::int64_t size,
                      std::string_view compressed_name, std::string_view indices_name) {
  const PatternNames names{compressed_name, indices_name};
  check_pattern_tensors("check_pattern", compressed, indices, size, "size", names);
  check_pattern_content_cuda("check_pattern", compressed, indices, size, names);
}

std::tuple<Tensor, Tensor, Tensor> transpose_pattern_op(const Tensor& compressed, const Tensor& indices,
                                                        std::int64_t size, bool sound) {
  auto result = empty_transpose(compressed, indices, size);
  if (!sound) check_pattern_content_cuda("transpose_pattern", compressed, indices, size, {"compressed", "indices"});
  const c10::cuda::CUDAGuard guard(compressed.device());
  const Tensor pointers = compressed.contiguous(), entries = indices.contiguous();
  const std::int64_t nnz = entries.numel();
  std::size_t needed = 0;
  check_launch(cuda::transpose_pattern_workspace(nnz, size, &needed));
  const Tensor workspace = device_memory(needed, entries);
  check_launch(cuda::transpose_pattern(
      pointers.const_data_ptr<std::int32_t>(), pointers.numel() - 1, entries.const_data_ptr<std::int32_t>(), nnz, size,
      std::get<0>(result).mutable_data_ptr<std::int32_t>(), std::get<1>(result).mutable_data_ptr<std::int32_t>(),
      std::get<2>(result).mutable_data_ptr<std::int32_t>(), bytes_of(workspace), current_stream()));
  return result;
}

Tensor pattern_mark_op(const Tensor& ccol_indices, const Tensor& row_indices) {
  Tensor marks = empty_mark(ccol_indices, row_indices);
  const c10::cuda::CUDAGuard guard(ccol_indices.device());
  const Tensor ccol = ccol_indices.contiguous(), row = row_indices.contiguous();
  const Tensor sum = at::empty({1}, ccol.options().dtype(at::kLong));
  check_launch(cuda::pattern_mark(ccol.const_data_ptr<std::int32_t>(), ccol.numel(), row.const_data_ptr<std::int32_t>(),
                                  row.numel(), static_cast<unsigned long long*>(sum.mutable_data_ptr()),
                                  marks.mutable_data_ptr<double>(), current_stream()));
  return marks;
}

}  // namespace

void check_pattern_content_cuda(const char* op, const Tensor& compressed, const Tensor& indices, std::int64_t size,
                                PatternNames names) {
  const c10::cuda::CUDAGuard guard(compressed.device());
  const Tensor pointers = compressed.contiguous(), entries = indices.contiguous();
  const Tensor found = at::empty({2}, pointers.options().dtype(at::kLong));
  check_launch(cuda::check_pattern(pointers.const_data_ptr<std::int32_t>(), pointers.numel() - 1,
                                   entries.const_data_ptr<std::int32_t>(), entries.numel(), size,
                                   static_cast<unsigned long long*>(found.mutable_data_ptr()), current_stream()));
  const Tensor faults = found.cpu();
  const auto* fault = faults.const_data_ptr<std::int64_t>();
  // Rare, so that the CPU may look again for the words to say it in.
  if (fault[0] != 0 || fault[1] != 0) check_pattern_content(op, pointers.cpu(), entries.cpu(), size, names);
}

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) {
  m.impl("check_pattern", check_pattern_op);
  m.impl("transpose_pattern", transpose_pattern_op);
  m.impl("pattern_mark", pattern_mark_op);
}

}  // namespace dendnorm::ops
