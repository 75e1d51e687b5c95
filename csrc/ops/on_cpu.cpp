#include "ops/on_cpu.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/pattern.h"

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would run on one thread only: compile this file with OpenMP, as PyTorch was"
#endif

namespace dendnorm::ops {
namespace {

// PyTorch's threads. They get the caller's rounding and flush-to-zero modes, or a result would depend on who computed
// which part of it.
void parallel_for(std::int64_t items, cpu::ParallelBody body, void* context) {
#if defined(__x86_64__)
  const unsigned mode = _mm_getcsr();
  at::parallel_for(0, items, 1, [&](std::int64_t begin, std::int64_t end) {
    const unsigned own = _mm_getcsr();
    if (own != mode) _mm_setcsr(mode);
    body(context, begin, end);
    if (own != mode) _mm_setcsr(own);
  });
#else
  at::parallel_for(0, items, 1, [&](std::int64_t begin, std::int64_t end) { body(context, begin, end); });
#endif
}

// What the allocator gets anew from the system for every call, page by page.
constexpr std::size_t kAnew = std::size_t{32} << 20;

}  // namespace

cpu::Threads threads() { return {parallel_for, at::in_parallel_region() ? 1 : at::get_num_threads()}; }

void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  if (bytes > kAnew && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Workspace::Workspace(std::size_t bytes) {
  if (bytes > kAnew) {
    own_ = allocate(bytes);
    prefer_large_pages(own_.get(), bytes);
    data_ = own_.get();
    return;
  }
  thread_local Memory kept;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    size = 0;
    kept.reset();
    kept = allocate(bytes);
    size = bytes;
  }
  data_ = kept.get();
}

void check_same_pattern(const char* op, const Pattern& p) {
  const View columns = columns_of(p), rows = rows_of(p);
  TORCH_CHECK_VALUE(views_agree(columns.start, p.ccol_indices.size(0) - 1, columns.index, rows.start,
                                p.crow_indices.size(0) - 1, rows.index, rows.perm, p.perm.size(0)),
                    "dendnorm::", op,
                    ": crow_indices, col_indices and perm must be the row view of ccol_indices and row_indices, got "
                    "views of different patterns; a compiled or exported graph keeps the row view: call the layer "
                    "once outside of it after its pattern was written, or layer.load_state_dict");
}

}  // namespace dendnorm::ops
