// Rewiring on a GPU: the rules are those of core/rewire.h, and so are the results, bit for bit. Pointers to device
// memory, sizes and a stream; like those of kernels.h, the functions only launch, wait for nothing and return the
// first error. Workspaces are aligned to 256 bytes.
//
// A fault in values goes to `status`, if its code is below the one that is there; what is written then is of no use but
// safe to go on with, as csrc/ops/library.cpp says. Patterns must be sound.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/random.h"
#include "core/status.h"
#include "cuda/runtime.h"

namespace dendnorm::cuda {

// chosen[i] = 1 for the k smallest of the n scores, of equals the earlier, and 0 for the others.
template <class T>
std::size_t weakest_workspace(std::int64_t n);
template <class T>
cudaError_t weakest(const T* score, std::int64_t n, std::int64_t k, std::uint8_t* chosen, Status* status,
                    std::byte* workspace, cudaStream_t stream);

// A column view and which of its connections go.
struct Dropping {
  std::int64_t rows, cols, nnz;
  const std::int32_t *ccol_indices, *row_indices;
  const std::uint8_t* dropped;
};

std::size_t excise_workspace(std::int64_t nnz);
cudaError_t excise(const Dropping& d, std::int64_t k, std::int32_t* ccol_left, std::int32_t* row_left,
                   std::int32_t* removed, Status* status, std::byte* workspace, cudaStream_t stream);

// The keys of k of the empty positions of a pattern, ascending; 0 <= k <= rows cols - nnz.
cudaError_t empty_positions_workspace(std::int64_t empty, std::int64_t k, std::size_t* bytes);
cudaError_t empty_positions(const std::int32_t* ccol_indices, const std::int32_t* row_indices, std::int64_t nnz,
                            std::int64_t rows, std::int64_t cols, std::int64_t k, const Stream& random,
                            std::int64_t* keys, std::byte* workspace, cudaStream_t stream);

std::size_t replace_connections_workspace(std::int64_t nnz);
cudaError_t replace_connections(const Dropping& d, const std::int64_t* keys, std::int64_t count,
                                std::int32_t* new_ccol_indices, std::int32_t* new_row_indices, std::int32_t* source,
                                Status* status, std::byte* workspace, cudaStream_t stream);

template <class T>
cudaError_t counter_normal(const Stream& random, std::int64_t n, T* values, cudaStream_t stream);

// found[0] = 1 if a source is not in [-1, n), else 0; found[1] = how many are negative.
cudaError_t check_source(const std::int32_t* source, std::int64_t n, unsigned long long* found, cudaStream_t stream);

// result[k] is the old value that stayed, or the next of `fill` (always its first unless `fill_each`); the old one
// where status, which may be null, tells of a fault. Values of 1, 2, 4, 8 or 16 bytes.
std::size_t carry_workspace(std::int64_t n, bool fill_each);
cudaError_t carry(const void* values, const std::int32_t* source, std::int64_t n, const void* fill, bool fill_each,
                  std::size_t element, void* result, const Status* status, std::byte* workspace, cudaStream_t stream);

// values = new_values, `words` of 1, 2, 4, 8 or 16 bytes, unless status tells of a fault.
cudaError_t assign(void* values, const void* new_values, std::int64_t words, std::size_t element, const Status* status,
                   cudaStream_t stream);

}  // namespace dendnorm::cuda
