#include "cuda/cub.h"

// The tests have std::stable_sort instead.
#if !defined(DENDNORM_CUDA_ON_HOST)

#include <cub/device/device_radix_sort.cuh>

#include "cuda/launch.h"

namespace dendnorm::cuda {

// Given null for the workspace, CUB tells how large it must be.
cudaError_t sort_keys_workspace(std::int64_t count, int bits, std::size_t* bytes) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  const std::uint64_t* keys = nullptr;
  std::uint64_t* sorted = nullptr;
  return cub::DeviceRadixSort::SortKeys(nullptr, *bytes, keys, sorted, static_cast<std::int32_t>(count), 0, bits);
}

cudaError_t sort_keys(const std::uint64_t* keys, std::uint64_t* sorted, std::int64_t count, int bits,
                      std::byte* workspace, std::size_t bytes, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  return cub::DeviceRadixSort::SortKeys(workspace, bytes, keys, sorted, static_cast<std::int32_t>(count), 0, bits,
                                        stream);
}

cudaError_t sort_pairs_workspace(std::int64_t count, int bits, std::size_t* bytes) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  const std::uint32_t* keys = nullptr;
  std::uint32_t* sorted_keys = nullptr;
  const std::int32_t* values = nullptr;
  std::int32_t* sorted_values = nullptr;
  return cub::DeviceRadixSort::SortPairs(nullptr, *bytes, keys, sorted_keys, values, sorted_values,
                                         static_cast<std::int32_t>(count), 0, bits);
}

cudaError_t sort_pairs(const std::uint32_t* keys, std::uint32_t* sorted_keys, const std::int32_t* values,
                       std::int32_t* sorted_values, std::int64_t count, int bits, std::byte* workspace,
                       std::size_t bytes, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  return cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, sorted_keys, values, sorted_values,
                                         static_cast<std::int32_t>(count), 0, bits, stream);
}

}  // namespace dendnorm::cuda

#endif
