// The kernels of an instruction set. Its source in csrc/cpu/isa includes this last, after all that impl/base.h asks
// for.
#pragma once

#include "cpu/impl/columns.h"
#include "cpu/impl/conv.h"
#include "cpu/impl/conv_pack.h"
#include "cpu/impl/forward.h"

namespace {

template <class T>
constexpr KernelsOf<T> kernels_of() {
  return {Isa<T>::kWidths, forward<T>,       columns<T>,     conv_limits<T>(),
          pack_images<T>,  unpack_images<T>, conv_gather<T>, conv_fused<T>};
}

const Kernels table{kernels_of<float>(), kernels_of<double>()};

}  // namespace
