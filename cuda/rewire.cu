// Which connections come, how both go into a pattern, and how values follow them.
#include "cuda/rewire.h"

#include <bit>

#include "core/rewire.h"
#include "cuda/cub.h"
#include "cuda/ranks.cuh"

namespace dendnorm::cuda {
namespace {

struct Ranking {
  Workspace workspace;
  u64* fault;
  u32* counts;
  i32* rank;

  Ranking(std::byte* base, i64 n) : workspace(base) {
    fault = workspace.take<u64>(1);
    counts = workspace.take<u32>(kMaxTiles);
    rank = workspace.take<i32>(n + 1);
  }
};

// ---- What goes ----

// Where not k are to be dropped, the first k are.
__global__ void __launch_bounds__(kThreads) excise_kernel(const Dropping d, i64 k, const i32* rank, i32* ccol_left,
                                                          i32* row_left, i32* removed, Status* status) {
  const i64 t = thread_number(), total = rank[d.nnz];
  const bool right = total == k;
  const auto gone_before = [&](i64 p) -> i64 { return right ? rank[p] : p < k ? p : k; };
  if (t == 0 && !right) note(status, urgency(Fault::kDropped, 0), k, total, 0);
  if (t < d.nnz) {
    const i64 before = gone_before(t);
    if (gone_before(t + 1) > before) {
      removed[before] = static_cast<i32>(t);
    } else {
      row_left[t - before] = d.row_indices[t];
    }
  }
  if (t <= d.cols) ccol_left[t] = static_cast<i32>(d.ccol_indices[t] - gone_before(d.ccol_indices[t]));
}

// ---- What comes ----

__global__ void __launch_bounds__(kThreads) draw_kernel(const Bijection shuffled, i64 k, std::uint64_t* numbers) {
  const i64 i = thread_number();
  if (i < k) numbers[i] = shuffled(static_cast<std::uint64_t>(i));
}

// From the numbers of empty positions in order; null: all of them.
__global__ void __launch_bounds__(kThreads) empty_keys_kernel(const std::uint64_t* numbers, i64 k, const i32* ccol,
                                                              const i32* row, i64 rows, i64 cols, i64* keys) {
  const i64 i = thread_number();
  if (i < k) keys[i] = empty_key(numbers != nullptr ? static_cast<i64>(numbers[i]) : i, ccol, row, rows, cols);
}

struct Drawing {
  Workspace workspace;
  std::uint64_t *drawn, *sorted;
  std::size_t sort_bytes = 0;
  std::byte* sort = nullptr;
  int bits;
  cudaError_t error;

  Drawing(std::byte* base, i64 empty, i64 k)
      : workspace(base), bits(std::bit_width(static_cast<std::uint64_t>(empty - 1))) {
    drawn = workspace.take<std::uint64_t>(k);
    sorted = workspace.take<std::uint64_t>(k);
    error = sort_keys_workspace(k, bits, &sort_bytes);
    if (error == cudaSuccess) sort = workspace.take<std::byte>(static_cast<i64>(sort_bytes));
  }
};

// ---- Both ----

// The position of the first connection of `column` at `row` or below.
__device__ __forceinline__ i64 lower_bound_in(const Dropping& d, i64 column, i64 row) {
  return first_of(d.ccol_indices[column], d.ccol_indices[column + 1], [&](i64 p) { return d.row_indices[p] >= row; });
}

__global__ void __launch_bounds__(kThreads)
    check_keys_kernel(const Dropping d, const i64* keys, i64 count, const i32* rank, u64* fault) {
  const i64 i = thread_number();
  if (i == 0 && rank[d.nnz] != count) atomicMax(fault, urgency(Fault::kCount, 0));
  if (i >= count) return;
  const i64 key = keys[i], before = i > 0 ? keys[i - 1] : -1;
  if (key <= before || key >= d.rows * d.cols) {
    atomicMax(fault, urgency(Fault::kKey, i));
  }
  if (key < 0 || key >= d.rows * d.cols) return;
  const i64 column = key / d.rows, row = key - column * d.rows, p = lower_bound_in(d, column, row);
  if (p < d.ccol_indices[column + 1] && d.row_indices[p] == row && d.dropped[p] == 0) {
    atomicMax(fault, urgency(Fault::kOccupied, i));
  }
}

__device__ void note_keys(const Dropping& d, const i64* keys, i64 count, const i32* rank, u64 fault, Status* status) {
  const i64 code = kClear - static_cast<i64>(fault), i = code & 0xFFFFFFFF;
  switch (static_cast<Fault>(code >> 32)) {
    case Fault::kCount: note(status, fault, rank[d.nnz], count, 0); break;
    case Fault::kKey: note(status, fault, keys[i], i > 0 ? keys[i - 1] : -1, d.rows * d.cols); break;
    default: note(status, fault, keys[i], d.rows, 0);
  }
}

// A connection that stays goes behind those that stay before it and the new ones of a lesser key; a new one likewise.
// Where the keys are wrong nothing changes.
__global__ void __launch_bounds__(kThreads)
    replace_kernel(const Dropping d, const i64* keys, i64 count, const i32* rank, const u64* fault, i32* new_ccol,
                   i32* new_row, i32* source, Status* status) {
  const i64 t = thread_number();
  const bool right = *fault == 0;
  if (t == 0 && !right) note_keys(d, keys, count, rank, *fault, status);
  const auto new_before = [&](i64 key) { return first_of(0, count, [&](i64 i) { return keys[i] >= key; }); };
  if (t < d.nnz && !(right && d.dropped[t] != 0)) {
    i64 to = t;
    if (right) {
      const i64 key = segment_of(d.ccol_indices, d.cols, t) * d.rows + d.row_indices[t];
      to = t - rank[t] + new_before(key);
    }
    new_row[to] = d.row_indices[t];
    source[to] = static_cast<i32>(t);
  }
  if (t < count && right) {
    const i64 key = keys[t], column = key / d.rows, row = key - column * d.rows;
    const i64 p = lower_bound_in(d, column, row), to = t + p - rank[p];
    new_row[to] = static_cast<i32>(row);
    source[to] = -1;
  }
  if (t <= d.cols) {
    const i64 p = d.ccol_indices[t];
    new_ccol[t] = static_cast<i32>(right ? p - rank[p] + new_before(t * d.rows) : p);
  }
}

// ---- Values ----

template <class T>
__global__ void __launch_bounds__(kThreads) normal_kernel(const Stream random, i64 n, T* values) {
  const i64 i = thread_number();
  if (2 * i >= n) return;
  const NormalPair pair = normal_pair(random, static_cast<std::uint64_t>(i));
  values[2 * i] = static_cast<T>(pair.first);
  if (2 * i + 1 < n) values[2 * i + 1] = static_cast<T>(pair.second);
}

__global__ void __launch_bounds__(kThreads) check_source_kernel(const i32* source, i64 n, u64* found) {
  u32* shared = shared_memory<u32>();
  const i64 k = thread_number();
  const i32 from = k < n ? source[k] : 0;
  const u32 fresh = block_sum(from < 0 ? 1 : 0, shared),
            wrong = block_sum(from < -1 || (k < n && from >= n) ? 1 : 0, shared);
  if (threadIdx.x != 0) return;
  if (wrong != 0) atomicMax(found, u64{1});
  if (fresh != 0) atomicAdd(found + 1, u64{fresh});
}

// `rank` null: one fill for all.
template <class Word>
__global__ void __launch_bounds__(kThreads) carry_kernel(const Word* values, const i32* source, i64 n, const Word* fill,
                                                         const i32* rank, Word* result, const Status* status) {
  const i64 k = thread_number();
  if (k >= n) return;
  const i32 from = source[k];
  if (status != nullptr && status->code != kClear) {
    result[k] = values[k];
  } else if (from >= 0) {
    result[k] = values[from];
  } else {
    result[k] = fill[rank != nullptr ? rank[k] : 0];
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    assign_kernel(Word* values, const Word* new_values, i64 n, const Status* status) {
  const i64 k = thread_number();
  if (k < n && status->code == kClear) values[k] = new_values[k];
}

// Values are moved, never read: their size is all that matters.
template <class Call>
cudaError_t with_word(std::size_t element, const Call& call) {
  switch (element) {
    case 1: return call(std::uint8_t{});
    case 2: return call(std::uint16_t{});
    case 4: return call(std::uint32_t{});
    case 8: return call(std::uint64_t{});
    case 16: return call(uint4{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

std::size_t excise_workspace(i64 nnz) { return Ranking(nullptr, nnz).workspace.bytes(); }

cudaError_t excise(const Dropping& d, i64 k, i32* ccol_left, i32* row_left, i32* removed, Status* status,
                   std::byte* workspace, cudaStream_t stream) {
  const Ranking memory(workspace, d.nnz);
  DENDNORM_CUDA_TRY(rank_flags(IsSet{d.dropped}, d.nnz, memory.counts, memory.rank, stream));
  return launch_kernel(excise_kernel, blocks_for(d.nnz > d.cols ? d.nnz : d.cols + 1), dim3(kThreads), 0, stream, d, k,
                       static_cast<const i32*>(memory.rank), ccol_left, row_left, removed, status);
}

cudaError_t empty_positions_workspace(i64 empty, i64 k, std::size_t* bytes) {
  *bytes = 0;
  if (k == 0 || k == empty) return cudaSuccess;
  const Drawing needed(nullptr, empty, k);
  *bytes = needed.workspace.bytes();
  return needed.error;
}

cudaError_t empty_positions(const i32* ccol_indices, const i32* row_indices, i64 nnz, i64 rows, i64 cols, i64 k,
                            const Stream& random, i64* keys, std::byte* workspace, cudaStream_t stream) {
  if (k == 0) return cudaSuccess;
  const i64 empty = rows * cols - nnz;
  const std::uint64_t* numbers = nullptr;
  if (k < empty) {
    const Drawing memory(workspace, empty, k);
    DENDNORM_CUDA_TRY(memory.error);
    DENDNORM_CUDA_TRY(launch_kernel(draw_kernel, blocks_for(k), dim3(kThreads), 0, stream,
                                    Bijection(static_cast<std::uint64_t>(empty), random), k, memory.drawn));
    DENDNORM_CUDA_TRY(sort_keys(memory.drawn, memory.sorted, k, memory.bits, memory.sort, memory.sort_bytes, stream));
    numbers = memory.sorted;
  }
  return launch_kernel(empty_keys_kernel, blocks_for(k), dim3(kThreads), 0, stream, numbers, k, ccol_indices,
                       row_indices, rows, cols, keys);
}

std::size_t replace_connections_workspace(i64 nnz) { return excise_workspace(nnz); }

cudaError_t replace_connections(const Dropping& d, const i64* keys, i64 count, i32* new_ccol_indices,
                                i32* new_row_indices, i32* source, Status* status, std::byte* workspace,
                                cudaStream_t stream) {
  const Ranking memory(workspace, d.nnz);
  const i32* rank = memory.rank;
  DENDNORM_CUDA_TRY(cudaMemsetAsync(memory.fault, 0, sizeof(u64), stream));
  DENDNORM_CUDA_TRY(rank_flags(IsSet{d.dropped}, d.nnz, memory.counts, memory.rank, stream));
  DENDNORM_CUDA_TRY(launch_kernel(check_keys_kernel, blocks_for(count), dim3(kThreads), 0, stream, d, keys, count, rank,
                                  memory.fault));
  // Right keys are no more than the connections.
  return launch_kernel(replace_kernel, blocks_for(d.nnz > d.cols ? d.nnz : d.cols + 1), dim3(kThreads), 0, stream, d,
                       keys, count, rank, static_cast<const u64*>(memory.fault), new_ccol_indices, new_row_indices,
                       source, status);
}

template <class T>
cudaError_t counter_normal(const Stream& random, i64 n, T* values, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch_kernel(normal_kernel<T>, blocks_for(n / 2 + n % 2), dim3(kThreads), 0, stream, random, n, values);
}

template cudaError_t counter_normal(const Stream&, i64, float*, cudaStream_t);
template cudaError_t counter_normal(const Stream&, i64, double*, cudaStream_t);

cudaError_t check_source(const i32* source, i64 n, u64* found, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(cudaMemsetAsync(found, 0, 2 * sizeof(u64), stream));
  return launch_kernel(check_source_kernel, blocks_for(n), dim3(kThreads), kRankShared, stream, source, n, found);
}

std::size_t carry_workspace(i64 n, bool fill_each) { return fill_each ? excise_workspace(n) : 0; }

cudaError_t carry(const void* values, const i32* source, i64 n, const void* fill, bool fill_each, std::size_t element,
                  void* result, const Status* status, std::byte* workspace, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const i32* rank = nullptr;
  if (fill_each) {
    const Ranking memory(workspace, n);
    DENDNORM_CUDA_TRY(rank_flags(IsNew{source}, n, memory.counts, memory.rank, stream));
    rank = memory.rank;
  }
  return with_word(element, [&](auto word) {
    using Word = decltype(word);
    return launch_kernel(carry_kernel<Word>, blocks_for(n), dim3(kThreads), 0, stream, static_cast<const Word*>(values),
                         source, n, static_cast<const Word*>(fill), rank, static_cast<Word*>(result), status);
  });
}

cudaError_t assign(void* values, const void* new_values, i64 words, std::size_t element, const Status* status,
                   cudaStream_t stream) {
  if (words == 0) return cudaSuccess;
  return with_word(element, [&](auto word) {
    using Word = decltype(word);
    return launch_kernel(assign_kernel<Word>, blocks_for(words), dim3(kThreads), 0, stream, static_cast<Word*>(values),
                         static_cast<const Word*>(new_values), words, status);
  });
}

}  // namespace dendnorm::cuda
