// What the choice of a kernel and the shape of its blocks need to know, on the host and on the device, without CUDA.
#pragma once

#include <cstdint>

namespace dendnorm::cuda {

// The threads of a block, and its warps, of every kernel that has no reason for others.
constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Device {
  int processors = 132;  // streaming multiprocessors
  // Shared memory that one block may ask for (cudaDevAttrMaxSharedMemoryPerBlockOptin).
  std::int64_t shared_bytes = 99 * 1024;
  std::int64_t l2_bytes = std::int64_t{50} << 20;
  double memory_rate = 3.35e12;  // bytes a second: an H100's, by its data sheet; an H200 has 4.8e12
};

}  // namespace dendnorm::cuda
