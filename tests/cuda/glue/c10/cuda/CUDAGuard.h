// What the glue needs of the header of this name, where the host stands in for CUDA.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include "cuda_on_host.h"

namespace c10::cuda {

// Any device but a CUDA one is a mistake of the caller. Without an index it is the current one.
class CUDAGuard {
 public:
  explicit CUDAGuard(Device device) {
    TORCH_INTERNAL_ASSERT(device.is_cuda(), "a CUDAGuard for ", device);
    if (device.has_index()) cuda_on_host::current_device() = device.index();
  }
  ~CUDAGuard() { cuda_on_host::current_device() = before_; }
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;

 private:
  int before_ = cuda_on_host::current_device();
};

using OptionalCUDAGuard = CUDAGuard;

}  // namespace c10::cuda
