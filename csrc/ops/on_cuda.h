// What every file needs that hands tensors to cuda/.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <cstddef>

namespace dendnorm::ops {

inline void check_launch(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "dendnorm: a CUDA kernel could not be launched: ", cudaGetErrorString(error), " (",
              cudaGetErrorName(error), ")");
}

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

// Memory of PyTorch's allocator, in which the stream orders who uses it: it may be freed before the kernels have run.
inline at::Tensor device_memory(std::size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
}

inline std::byte* bytes_of(const at::Tensor& memory) { return static_cast<std::byte*>(memory.mutable_data_ptr()); }

}  // namespace dendnorm::ops
