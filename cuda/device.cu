// What the choice of a kernel needs to know of the device.
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace dendnorm::cuda {

cudaError_t current_device(Device* device) {
  int index = 0, processors = 0, shared = 0, l2 = 0;
  DENDNORM_CUDA_TRY(cudaGetDevice(&index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, index));
  device->processors = processors;
  device->shared_bytes = shared;
  device->l2_bytes = l2;
  return cudaSuccess;
}

}  // namespace dendnorm::cuda
