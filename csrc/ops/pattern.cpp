#include "ops/pattern.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <cstdint>
#include <tuple>

#include "core/pattern.h"
#include "ops/parallel.h"
#include "ops/require.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

void check_pattern_cpu(const Tensor& compressed, const Tensor& indices, std::int64_t size,
                       std::string_view compressed_name, std::string_view indices_name) {
  const PatternNames names{compressed_name, indices_name};
  check_pattern_tensors("check_pattern", compressed, indices, size, "size", names);
  check_pattern_content("check_pattern", compressed.contiguous(), indices.contiguous(), size, names);
}

void check_pattern_meta(const Tensor& compressed, const Tensor& indices, std::int64_t size,
                        std::string_view compressed_name, std::string_view indices_name) {
  check_pattern_tensors("check_pattern", compressed, indices, size, "size", {compressed_name, indices_name});
}

constexpr PatternNames kNames{"compressed", "indices"};

std::tuple<Tensor, Tensor, Tensor> transpose_pattern_cpu(const Tensor& compressed, const Tensor& indices,
                                                         std::int64_t size, bool sound) {
  auto result = empty_transpose(compressed, indices, size);
  const Tensor from = compressed.contiguous(), entries = indices.contiguous();
  if (!sound) check_pattern_content("transpose_pattern", from, entries, size, kNames);
  transpose_pattern(
      from.const_data_ptr<std::int32_t>(), from.numel() - 1, entries.const_data_ptr<std::int32_t>(), size,
      std::get<0>(result).mutable_data_ptr<std::int32_t>(), std::get<1>(result).mutable_data_ptr<std::int32_t>(),
      std::get<2>(result).mutable_data_ptr<std::int32_t>(), parts_of(entries.numel(), kEntries), PartsOnThreads{});
  return result;
}

std::tuple<Tensor, Tensor, Tensor> transpose_pattern_meta(const Tensor& compressed, const Tensor& indices,
                                                          std::int64_t size, bool) {
  return empty_transpose(compressed, indices, size);
}

// A pattern need not be sound to have one.
Tensor pattern_mark_cpu(const Tensor& ccol_indices, const Tensor& row_indices) {
  Tensor marks = empty_mark(ccol_indices, row_indices);
  const Tensor ccol = ccol_indices.contiguous(), row = row_indices.contiguous();
  std::atomic<std::uint64_t> sum = 0;
  on_threads(ccol.numel() + row.numel(), kEntries, [&](std::int64_t begin, std::int64_t end) {
    sum += mark_of_entries(ccol.const_data_ptr<std::int32_t>(), ccol.numel(), row.const_data_ptr<std::int32_t>(), begin,
                           end);
  });
  write_mark(sum, marks.mutable_data_ptr<double>());
  return marks;
}

// Where there is no kernel of its own, by the CPU.
Tensor pattern_mark_elsewhere(const Tensor& ccol_indices, const Tensor& row_indices) {
  return pattern_mark_cpu(ccol_indices.cpu(), row_indices.cpu()).to(ccol_indices.device());
}

}  // namespace

void check_pattern_tensors(const char* op, const Tensor& compressed, const Tensor& indices, std::int64_t size,
                           const char* size_name, PatternNames names) {
  TORCH_CHECK(0 <= size && size < kMaxIndex, "dendnorm::", op, ": ", size_name, " must be in [0, ", kMaxIndex,
              "), got ", size);
  require_dtype(op, names.compressed, compressed, {at::kInt});
  require_one_dimension(op, names.compressed, compressed);
  require_dtype(op, names.indices, indices, {at::kInt});
  require_one_dimension(op, names.indices, indices);
  require_device_of(op, names.indices, indices, names.compressed, compressed);
  TORCH_CHECK(compressed.sym_size(0) >= 1, "dendnorm::", op, ": ", names.compressed,
              " must have at least one entry, got none");
  TORCH_CHECK(compressed.sym_size(0) <= kMaxIndex, "dendnorm::", op, ": ", names.compressed, " must have at most ",
              kMaxIndex, " entries, got ", compressed.sym_size(0));
  TORCH_CHECK(indices.sym_size(0) <= kMaxIndex, "dendnorm::", op, ": ", names.indices, " must have at most ", kMaxIndex,
              " entries, got ", indices.sym_size(0));
}

Tensor empty_mark(const Tensor& ccol_indices, const Tensor& row_indices) {
  check_pattern_tensors("pattern_mark", ccol_indices, row_indices, 0, "size", {});
  return at::empty({kMarks}, ccol_indices.options().dtype(at::kDouble));
}

std::tuple<Tensor, Tensor, Tensor> empty_transpose(const Tensor& compressed, const Tensor& indices, std::int64_t size) {
  check_pattern_tensors("transpose_pattern", compressed, indices, size, "size", kNames);
  const auto nnz = indices.sym_size(0);
  return {at::empty({size + 1}, indices.options()), at::empty_symint({nnz}, indices.options()),
          at::empty_symint({nnz}, indices.options())};
}

void check_pattern_content(const char* op, const Tensor& compressed, const Tensor& indices, std::int64_t size,
                           PatternNames names) {
  const auto* pointers = compressed.const_data_ptr<std::int32_t>();
  const auto* entries = indices.const_data_ptr<std::int32_t>();
  const std::int64_t nnz = indices.numel();
  const auto [fault, at] = check_pattern(pointers, compressed.numel() - 1, entries, nnz, size);
  switch (fault) {
    case PatternFault::kNone: return;
    case PatternFault::kStart:
      TORCH_CHECK(false, "dendnorm::", op, ": ", names.compressed, " must start with 0, got ", pointers[0]);
    case PatternFault::kFalling:
      TORCH_CHECK(false, "dendnorm::", op, ": ", names.compressed, " must never fall, got ", pointers[at], " after ",
                  pointers[at - 1], " at position ", at);
    case PatternFault::kEnd:
      TORCH_CHECK(false, "dendnorm::", op, ": ", names.compressed, " must end with ", nnz,
                  ", the number of entries of ", names.indices, ", got ", pointers[at]);
    case PatternFault::kRange:
      TORCH_CHECK(false, "dendnorm::", op, ": ", names.indices, " must be in [0, ", size, "), got ", entries[at],
                  " at position ", at);
    case PatternFault::kOrder:
      TORCH_CHECK(false, "dendnorm::", op, ": ", names.indices, " must be strictly ascending within each segment of ",
                  names.compressed, ", got ", entries[at], " after ", entries[at - 1], " at position ", at);
  }
}

TORCH_LIBRARY_IMPL(dendnorm, CPU, m) {
  m.impl("check_pattern", check_pattern_cpu);
  m.impl("transpose_pattern", transpose_pattern_cpu);
  m.impl("pattern_mark", pattern_mark_cpu);
}

TORCH_LIBRARY_IMPL(dendnorm, CompositeExplicitAutograd, m) { m.impl("pattern_mark", pattern_mark_elsewhere); }

TORCH_LIBRARY_IMPL(dendnorm, Meta, m) {
  m.impl("check_pattern", check_pattern_meta);
  m.impl("transpose_pattern", transpose_pattern_meta);
  m.impl("pattern_mark", empty_mark);
}

}  // namespace dendnorm::ops
