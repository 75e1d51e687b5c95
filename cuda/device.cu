// What the choice of a kernel needs to know of the device.
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace dendnorm::cuda {

cudaError_t current_device(Device* device) {
  // Asked once by each thread that stays on a device: a step asks several times, and nothing of it changes.
  static thread_local int known = -1;
  static thread_local Device last;
  int index = 0, processors = 0, shared = 0, l2 = 0;
  DENDNORM_CUDA_TRY(cudaGetDevice(&index));
  if (index == known) {
    *device = last;
    return cudaSuccess;
  }
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, index));
  last.processors = processors;
  last.shared_bytes = shared;
  last.l2_bytes = l2;
  known = index;
  *device = last;
  return cudaSuccess;
}

}  // namespace dendnorm::cuda
