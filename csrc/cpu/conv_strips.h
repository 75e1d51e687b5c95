// Few samples: each is cut into strips of its rows, which take the place of samples, so that vectors are full.
#pragma once

#include "cpu/conv.h"

namespace dendnorm::cpu {

// Whether strips cost less than a tile that is mostly empty.
bool prefers_strips(const ConvShape& shape, std::int64_t lanes);

template <class T>
void strips_forward(const ConvForward<T>& f, const KernelsOf<T>& kernels);
template <class T>
void strips_backward(const ConvBackward<T>& c, const KernelsOf<T>& kernels);

}  // namespace dendnorm::cpu
