// What is taken from CUB, in one file that is slow to compile; tests/cuda has the same for the processor.
//
// What is sorted is counted in 32 bits: more than kMaxSorted is refused (cudaErrorInvalidValue), not cut off.
// Workspaces are device memory aligned to 256 bytes; their sizes depend on `count` and on the current device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"

namespace dendnorm::cuda {

constexpr std::int64_t kMaxSorted = 0x7fffffff;

// Before CUB is called. It returns CUDA's last error, which may be one that somebody else left: that is forgotten here.
inline cudaError_t begin_sort(std::int64_t count) {
  if (count < 0 || count > kMaxSorted) return cudaErrorInvalidValue;
  cudaGetLastError();
  return cudaSuccess;
}

// Sorts ascending by the lowest `bits` bits; the others must be 0.
cudaError_t sort_keys_workspace(std::int64_t count, int bits, std::size_t* bytes);
cudaError_t sort_keys(const std::uint64_t* keys, std::uint64_t* sorted, std::int64_t count, int bits,
                      std::byte* workspace, std::size_t bytes, cudaStream_t stream);

// And takes values along; of equal keys, the earlier stays before the later.
cudaError_t sort_pairs_workspace(std::int64_t count, int bits, std::size_t* bytes);
cudaError_t sort_pairs(const std::uint32_t* keys, std::uint32_t* sorted_keys, const std::int32_t* values,
                       std::int32_t* sorted_values, std::int64_t count, int bits, std::byte* workspace,
                       std::size_t bytes, cudaStream_t stream);

}  // namespace dendnorm::cuda
