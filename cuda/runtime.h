// The runtime's types (cudaStream_t, cudaError_t, ...), from CUDA or, where the kernels are compiled for the processor
// to be tested without a GPU, from a stand-in.
#pragma once

#if defined(DENDNORM_CUDA_ON_HOST)
#include "cuda_on_host.h"
#else
#include <cuda_runtime.h>
#endif
