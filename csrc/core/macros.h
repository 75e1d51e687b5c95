// What lets one function compile for the host and for the device, and what leaves no copy of a function for the linker.
#pragma once

#if defined(__CUDACC__)
#define DENDNORM_HD __host__ __device__
#else
#define DENDNORM_HD
#endif

#define DENDNORM_INLINE __attribute__((always_inline)) inline
