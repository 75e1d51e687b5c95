// Compressed patterns on a GPU: pointers to device memory, sizes and a stream. Like those of kernels.h, the functions
// only launch, wait for nothing and return the first error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"

namespace dendnorm::cuda {

// found[0] and found[1] are set to 0 if core/pattern.h's check_pattern finds nothing, and one of them to 1 otherwise.
cudaError_t check_pattern(const std::int32_t* compressed, std::int64_t segments, const std::int32_t* indices,
                          std::int64_t nnz, std::int64_t size, unsigned long long* found, cudaStream_t stream);

// As core/pattern.h's transpose_pattern, with the nnz that compressed[segments] holds.
cudaError_t transpose_pattern_workspace(std::int64_t nnz, std::int64_t size, std::size_t* bytes);
cudaError_t transpose_pattern(const std::int32_t* compressed, std::int64_t segments, const std::int32_t* indices,
                              std::int64_t nnz, std::int64_t size, std::int32_t* compressed_t, std::int32_t* indices_t,
                              std::int32_t* perm, std::byte* workspace, cudaStream_t stream);

// As core/pattern.h's pattern_mark. `sum` is memory to work in; marks (kMarks,).
cudaError_t pattern_mark(const std::int32_t* ccol_indices, std::int64_t pointers, const std::int32_t* row_indices,
                         std::int64_t nnz, unsigned long long* sum, double* marks, cudaStream_t stream);

}  // namespace dendnorm::cuda
