#include "cuda/pattern.h"

#include <bit>

#include "core/pattern.h"
#include "cuda/cub.h"
#include "cuda/ranks.cuh"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    check_pointers_kernel(const i32* compressed, i64 segments, i64 nnz, u64* found) {
  const i64 j = thread_number();
  if (j <= segments && pointer_fault(compressed, j, segments, nnz) != PatternFault::kNone) atomicMax(found, u64{1});
}

// Reads no pointer before all are known to be in range.
__global__ void __launch_bounds__(kThreads)
    check_indices_kernel(const i32* compressed, i64 segments, const i32* indices, i64 nnz, i64 size, u64* found) {
  const i64 k = thread_number();
  if (k >= nnz || found[0] != 0) return;
  const i64 first = compressed[segment_of(compressed, segments, k)];
  if (index_fault(indices, k, first, size) != PatternFault::kNone) atomicMax(found + 1, u64{1});
}

__global__ void __launch_bounds__(kThreads)
    segments_kernel(const i32* compressed, i64 segments, i64 nnz, i32* segment, i32* position) {
  const i64 k = thread_number();
  if (k >= nnz) return;
  segment[k] = static_cast<i32>(segment_of(compressed, segments, k));
  position[k] = static_cast<i32>(k);
}

// From the indices in order, each with its old position.
__global__ void __launch_bounds__(kThreads) transpose_kernel(const u32* sorted, const i32* perm, const i32* segment,
                                                             i64 nnz, i64 size, i32* compressed_t, i32* indices_t) {
  const i64 t = thread_number();
  if (t < nnz) indices_t[t] = segment[perm[t]];
  if (t <= size) compressed_t[t] = static_cast<i32>(first_of(0, nnz, [&](i64 k) { return sorted[k] >= t; }));
}

constexpr i64 kMarkBlocks = 1024;

__global__ void __launch_bounds__(kThreads)
    mark_sum_kernel(const i32* ccol_indices, i64 pointers, const i32* row_indices, i64 entries, u64* sum) {
  u64 mine = 0;
  for (i64 k = thread_number(); k < entries; k += static_cast<i64>(gridDim.x) * kThreads) {
    mine += mark_of_entry(ccol_indices, pointers, row_indices, k);
  }
  mine = warp_sum(mine);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, mine);
}

__global__ void __launch_bounds__(kThreads) mark_bytes_kernel(const u64* sum, double* marks) {
  if (threadIdx.x < kMarks) marks[threadIdx.x] = mark_byte(*sum, static_cast<int>(threadIdx.x));
}

int bits_of(i64 size) { return size > 1 ? std::bit_width(static_cast<std::uint64_t>(size - 1)) : 1; }

struct Transposing {
  Workspace workspace;
  u32* sorted;
  i32 *segment, *position;
  std::size_t sort_bytes = 0;
  std::byte* sort = nullptr;
  cudaError_t error;

  Transposing(std::byte* base, i64 nnz, i64 size) : workspace(base) {
    sorted = workspace.take<u32>(nnz);
    segment = workspace.take<i32>(nnz);
    position = workspace.take<i32>(nnz);
    error = sort_pairs_workspace(nnz, bits_of(size), &sort_bytes);
    if (error == cudaSuccess) sort = workspace.take<std::byte>(static_cast<i64>(sort_bytes));
  }
};

}  // namespace

cudaError_t check_pattern(const i32* compressed, i64 segments, const i32* indices, i64 nnz, i64 size, u64* found,
                          cudaStream_t stream) {
  DENDNORM_CUDA_TRY(cudaMemsetAsync(found, 0, 2 * sizeof(u64), stream));
  DENDNORM_CUDA_TRY(launch_kernel(check_pointers_kernel, blocks_for(segments + 1), dim3(kThreads), 0, stream,
                                  compressed, segments, nnz, found));
  if (nnz == 0) return cudaSuccess;
  return launch_kernel(check_indices_kernel, blocks_for(nnz), dim3(kThreads), 0, stream, compressed, segments, indices,
                       nnz, size, found);
}

cudaError_t transpose_pattern_workspace(i64 nnz, i64 size, std::size_t* bytes) {
  const Transposing needed(nullptr, nnz, size);
  *bytes = needed.workspace.bytes();
  return needed.error;
}

cudaError_t transpose_pattern(const i32* compressed, i64 segments, const i32* indices, i64 nnz, i64 size,
                              i32* compressed_t, i32* indices_t, i32* perm, std::byte* workspace, cudaStream_t stream) {
  if (nnz == 0) return cudaMemsetAsync(compressed_t, 0, static_cast<std::size_t>(size + 1) * sizeof(i32), stream);
  const Transposing memory(workspace, nnz, size);
  DENDNORM_CUDA_TRY(memory.error);
  DENDNORM_CUDA_TRY(launch_kernel(segments_kernel, blocks_for(nnz), dim3(kThreads), 0, stream, compressed, segments,
                                  nnz, memory.segment, memory.position));
  DENDNORM_CUDA_TRY(sort_pairs(reinterpret_cast<const u32*>(indices), memory.sorted, memory.position, perm, nnz,
                               bits_of(size), memory.sort, memory.sort_bytes, stream));
  return launch_kernel(transpose_kernel, blocks_for(nnz > size ? nnz : size + 1), dim3(kThreads), 0, stream,
                       static_cast<const u32*>(memory.sorted), static_cast<const i32*>(perm),
                       static_cast<const i32*>(memory.segment), nnz, size, compressed_t, indices_t);
}

cudaError_t pattern_mark(const i32* ccol_indices, i64 pointers, const i32* row_indices, i64 nnz, u64* sum,
                         double* marks, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(cudaMemsetAsync(sum, 0, sizeof(u64), stream));
  const i64 entries = pointers + nnz;
  const dim3 blocks = blocks_for(entries < kMarkBlocks * kThreads ? entries : kMarkBlocks * kThreads);
  DENDNORM_CUDA_TRY(launch_kernel(mark_sum_kernel, blocks, dim3(kThreads), 0, stream, ccol_indices, pointers,
                                  row_indices, entries, sum));
  return launch_kernel(mark_bytes_kernel, dim3(1), dim3(kThreads), 0, stream, static_cast<const u64*>(sum), marks);
}

}  // namespace dendnorm::cuda
