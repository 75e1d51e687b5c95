// How kernels are started, and the device functions that they may use.
//
// Kernels are compiled for the GPU by nvcc and, to be tested where there is none, for the processor by a C++ compiler
// with DENDNORM_CUDA_ON_HOST and a stand-in for the list below. So nothing else of CUDA appears in cuda/*.cu and *.cuh:
//
//   __global__ __device__ __host__ __forceinline__ __launch_bounds__ __restrict__, threadIdx blockIdx blockDim gridDim
//   __syncthreads(), __syncwarp()                      by every thread of the block, of the warp
//   __shfl_sync, __shfl_xor_sync, __shfl_down_sync     full mask; int, unsigned, float, double
//   __ballot_sync                                      full mask
//   __popc; atomicAdd, atomicMax on unsigned and unsigned long long
//   __ldg on std::int32_t, float, double, uint4
//   uint4 {x, y, z, w}, dim3
//   fma, fmaf, std::fabs, std::sqrt, std::pow, std::frexp, std::ldexp, std::isinf, std::isfinite
//   cudaMemsetAsync
//   cudaLaunchKernelEx, cudaGetLastError, cudaGetDevice, cudaDeviceGetAttribute, cudaFuncSetAttribute (only in this
//   file, cub.h and device.cu)
//   launch_kernel(kernel, grid, block, shared, stream, args...) -> cudaError_t, shared_memory<T>(), copy_ahead(to,
//   from) and wait_for_copies(), declared below; the stand-in defines its own four in namespace dendnorm::cuda
//
// Every launch is of at least one block, has at most 1024 threads in blockDim.x, and uses gridDim.x (up to 2^31 - 1)
// and gridDim.y (up to 65535). Shared memory is dynamic only, aligned to 16 bytes, uninitialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "cuda/device.h"
#include "cuda/runtime.h"

namespace dendnorm::cuda {

using i32 = std::int32_t;
using i64 = std::int64_t;
using u32 = std::uint32_t;
using u64 = unsigned long long;  // what atomics take

constexpr unsigned kFullMask = 0xffffffffu;
constexpr std::int64_t kMaxGridX = 0x7fffffff;
constexpr std::int64_t kMaxGridY = 65535;
constexpr std::size_t kFreeShared = 48 * 1024;  // shared memory that every launch may ask for

// Leaves the calling function, which returns cudaError_t, with the first error.
#define DENDNORM_CUDA_TRY(call)                               \
  do {                                                        \
    const cudaError_t dendnorm_error = (call);                \
    if (dendnorm_error != cudaSuccess) return dendnorm_error; \
  } while (0)

// Lets a kernel have more than 48 KB of shared memory, which each device has to be told once. All that the device has,
// and not what one launch asks for: two threads may launch the same kernel.
inline cudaError_t allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  DENDNORM_CUDA_TRY(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  if (allowed.contains({kernel, device})) return cudaSuccess;
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  DENDNORM_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  allowed.insert({kernel, device});
  return cudaSuccess;
}

#if !defined(DENDNORM_CUDA_ON_HOST) && defined(__CUDACC__)

// The block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ uint4 dendnorm_shared_memory[];
  return reinterpret_cast<T*>(dendnorm_shared_memory);
}

// 16 bytes from global to shared memory, both aligned to them, past the registers: as many as a thread likes are under
// way at once. They are there for it once it has waited, and for others after a barrier.
__device__ __forceinline__ void copy_ahead(std::byte* to, const std::byte* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                          const Arguments&... arguments) {
  if (shared > kFreeShared) DENDNORM_CUDA_TRY(allow_shared_memory(reinterpret_cast<const void*>(kernel)));
  // What this launch itself returns: cudaGetLastError could tell of one that failed before, of somebody else.
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  // It is returned, and so is not left for the next who asks CUDA for its last error.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

#endif

}  // namespace dendnorm::cuda
