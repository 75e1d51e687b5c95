// Random numbers for ops of PyTorch on a device that the host stands in for: another generator than the CPU's, as
// there.
#pragma once

#include <ATen/core/Generator.h>

namespace cuda_on_host {

// -1 is the current device.
const at::Generator& default_generator(int device);
at::Generator new_generator(int device);
// The one of the CPU behind it; undefined for a generator that is none of ours.
at::Generator behind(const at::Generator& generator);

}  // namespace cuda_on_host
