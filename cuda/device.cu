// What the choice of a kernel needs to know of the device.
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace dendnorm::cuda {

cudaError_t current_device(Device* device) {
  int index = 0, processors = 0, shared = 0;
  DENDNORM_CUDA_TRY(cudaGetDevice(&index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  DENDNORM_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  *device = {processors, shared};
  return cudaSuccess;
}

}  // namespace dendnorm::cuda
