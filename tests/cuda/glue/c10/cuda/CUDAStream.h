// What the glue needs of the header of this name, where the host stands in for CUDA.
#pragma once

#include "streams.h"

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(cuda_on_host::StreamName name) : name_(name) {}
  operator cudaStream_t() const { return cuda_on_host::handle_of(name_); }

 private:
  cuda_on_host::StreamName name_;
};

inline CUDAStream getCurrentCUDAStream() {
  return CUDAStream(cuda_on_host::current_stream(cuda_on_host::current_device()));
}

}  // namespace c10::cuda
