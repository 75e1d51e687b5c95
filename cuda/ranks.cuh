// Numbering things in order: rank i is how many of the flags before position i are set. Two launches: counts of
// contiguous tiles, and then every block adds those before its own and goes through its tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "cuda/launch.h"
#include "cuda/segments.cuh"
#include "cuda/workspace.h"

namespace dendnorm::cuda {
namespace {

constexpr i64 kMaxTiles = 1024;

// One thread for each of `count` things.
inline dim3 blocks_for(i64 count) {
  return dim3(static_cast<unsigned>(count > 0 ? (count + kThreads - 1) / kThreads : 1));
}
__device__ __forceinline__ i64 thread_number() { return static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; }

// A fault on its way, 0 for none: the greatest of these has the least code, so zeroed memory and atomicMax will do.
__device__ __forceinline__ u64 urgency(Fault fault, i64 position) {
  return static_cast<u64>(kClear - code_of(fault, position));
}

// By one thread, in a later launch than the atomics. The least code stays.
__device__ __forceinline__ void note(Status* status, u64 urgency, i64 first, i64 second, i64 third) {
  const i64 code = kClear - static_cast<i64>(urgency);
  if (code >= status->code) return;
  status->code = code;
  status->detail[0] = first;
  status->detail[1] = second;
  status->detail[2] = third;
}

// The sum of `mine` over the block, for all threads. `shared`: kWarps entries.
__device__ __forceinline__ u32 block_sum(u32 mine, u32* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int half = 16; half > 0; half /= 2) mine += __shfl_xor_sync(kFullMask, mine, half);
  __syncthreads();  // the last sum has been read
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  u32 sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  return sum;
}

struct Tiles {
  i64 size;  // a multiple of kThreads
  unsigned count;
};

inline Tiles tiles_of(i64 n) {
  const i64 wanted = (n + 4 * kThreads - 1) / (4 * kThreads), count = wanted < kMaxTiles ? wanted : kMaxTiles;
  if (count < 1) return {kThreads, 1};
  const i64 size = ((n + count - 1) / count + kThreads - 1) / kThreads * kThreads;
  return {size, static_cast<unsigned>((n + size - 1) / size)};
}

// How many of this block's tile are flagged.
template <class Flag>
__device__ void count_tile(const Flag& flag, i64 n, i64 tile, u32* counts, u32* shared) {
  const i64 first = blockIdx.x * tile, end = first + tile < n ? first + tile : n;
  u32 mine = 0;
  for (i64 i = first + threadIdx.x; i < end; i += kThreads) mine += flag(i) ? 1 : 0;
  const u32 sum = block_sum(mine, shared);
  if (threadIdx.x == 0) counts[blockIdx.x] = sum;
}

// use(i, flagged, rank) for every i of this block's tile; returns the rank of what follows it. `shared`: 2 kWarps.
template <class Flag, class Use>
__device__ u32 rank_tile(const Flag& flag, i64 n, i64 tile, const u32* counts, u32* shared, const Use& use) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  u32 before = 0;
  for (unsigned b = threadIdx.x; b < blockIdx.x; b += kThreads) before += counts[b];
  u32 base = block_sum(before, shared);
  const i64 first = blockIdx.x * tile, end = first + tile < n ? first + tile : n;
  int turn = 0;  // two sets of sums, so that one barrier for each round is enough
  for (i64 start = first; start < end; start += kThreads, turn ^= 1) {
    const i64 i = start + threadIdx.x;
    const bool flagged = i < end && flag(i);
    const unsigned votes = __ballot_sync(kFullMask, flagged);
    u32* sums = shared + kWarps * (1 + turn);
    if (lane == 0) sums[warp] = static_cast<u32>(__popc(votes));
    __syncthreads();
    u32 rank = base + static_cast<u32>(__popc(votes & ((1u << lane) - 1)));
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) rank += sums[w];
      base += sums[w];
    }
    if (i < end) use(i, flagged, rank);
  }
  return base;
}
constexpr std::size_t kRankShared = 3 * kWarps * sizeof(u32);

template <class Flag>
__global__ void __launch_bounds__(kThreads) count_kernel(Flag flag, i64 n, i64 tile, u32* counts) {
  count_tile(flag, n, tile, counts, shared_memory<u32>());
}

template <class Flag>
__global__ void __launch_bounds__(kThreads) rank_kernel(Flag flag, i64 n, i64 tile, const u32* counts, i32* rank) {
  const u32 all = rank_tile(flag, n, tile, counts, shared_memory<u32>(),
                            [&](i64 i, bool, u32 before) { rank[i] = static_cast<i32>(before); });
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) rank[n] = static_cast<i32>(all);
}

// rank (n + 1,), whose last entry is how many flags there are; counts (kMaxTiles,).
template <class Flag>
cudaError_t rank_flags(Flag flag, i64 n, u32* counts, i32* rank, cudaStream_t stream) {
  const Tiles tiles = tiles_of(n);
  DENDNORM_CUDA_TRY(launch_kernel(count_kernel<Flag>, dim3(tiles.count), dim3(kThreads), kRankShared, stream, flag, n,
                                  tiles.size, counts));
  return launch_kernel(rank_kernel<Flag>, dim3(tiles.count), dim3(kThreads), kRankShared, stream, flag, n, tiles.size,
                       static_cast<const u32*>(counts), rank);
}

struct IsSet {  // any byte but 0 is true
  const std::uint8_t* flags;
  __device__ bool operator()(i64 i) const { return flags[i] != 0; }
};

struct IsNew {
  const i32* source;
  __device__ bool operator()(i64 i) const { return source[i] < 0; }
};

}  // namespace
}  // namespace dendnorm::cuda
