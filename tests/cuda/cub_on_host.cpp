// cuda/cub.h by other means. The workspaces are asked for and filled, so that one that is too small is found; and as
// CUB does, what was launched ends with CUDA's last error, whoever left it.
#include "cuda/cub.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/launch.h"

namespace dendnorm::cuda {
namespace {

bool suffices(const std::byte* workspace, std::size_t bytes, std::size_t needed) {
  return bytes >= needed && workspace != nullptr;
}

template <class Key>
std::vector<std::int64_t> order_of_keys(const Key* keys, std::int64_t count, int bits) {
  const Key mask = bits < static_cast<int>(8 * sizeof(Key)) ? (Key{1} << bits) - 1 : ~Key{0};
  std::vector<std::int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t i, std::int64_t j) { return (keys[i] & mask) < (keys[j] & mask); });
  return order;
}

}  // namespace

cudaError_t sort_keys_workspace(std::int64_t count, int bits, std::size_t* bytes) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  *bytes = static_cast<std::size_t>(count + bits);
  return cudaPeekAtLastError();
}

cudaError_t sort_keys(const std::uint64_t* keys, std::uint64_t* sorted, std::int64_t count, int bits,
                      std::byte* workspace, std::size_t bytes, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  if (!suffices(workspace, bytes, static_cast<std::size_t>(count + bits))) return cudaErrorInvalidValue;
  DENDNORM_CUDA_TRY(cudaPeekAtLastError());
  return cuda_on_host::enqueue(stream, [=] {
    std::memset(workspace, 0x5a, bytes);
    const auto order = order_of_keys(keys, count, bits);
    for (std::int64_t i = 0; i < count; ++i) sorted[i] = keys[order[i]];
  });
}

cudaError_t sort_pairs_workspace(std::int64_t count, int bits, std::size_t* bytes) {
  return sort_keys_workspace(count, bits, bytes);
}

cudaError_t sort_pairs(const std::uint32_t* keys, std::uint32_t* sorted_keys, const std::int32_t* values,
                       std::int32_t* sorted_values, std::int64_t count, int bits, std::byte* workspace,
                       std::size_t bytes, cudaStream_t stream) {
  DENDNORM_CUDA_TRY(begin_sort(count));
  if (!suffices(workspace, bytes, static_cast<std::size_t>(count + bits))) return cudaErrorInvalidValue;
  DENDNORM_CUDA_TRY(cudaPeekAtLastError());
  return cuda_on_host::enqueue(stream, [=] {
    std::memset(workspace, 0x5a, bytes);
    const auto order = order_of_keys(keys, count, bits);
    for (std::int64_t i = 0; i < count; ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
  });
}

}  // namespace dendnorm::cuda
