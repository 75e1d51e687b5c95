// Images of any strides and types <-> slabs.
#pragma once

#include "cpu/conv.h"
#include "cpu/conv_pass.h"

namespace dendnorm::cpu {

struct ImageSizes {
  std::int64_t samples, channels, height, width;
};

// Spare lanes are zeros.
template <class T>
void pack_images(const Images& from, const ImageSizes& sizes, std::int64_t lanes, const Slab<T>& to,
                 const Threads& threads);
template <class T>
void unpack_images(const Slab<T>& from, const ImageSizes& sizes, std::int64_t lanes, const Images& to,
                   const Threads& threads);

// sums[c] = that of channel c.
template <class T>
void sum_images(const Slab<T>& images, const ImageSizes& sizes, std::int64_t lanes, T* sums, const Threads& threads);

}  // namespace dendnorm::cpu
