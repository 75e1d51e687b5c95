// What lets one function compile for the host and for the device.
#pragma once

#if defined(__CUDACC__)
#define DENDNORM_HD __host__ __device__
#else
#define DENDNORM_HD
#endif
