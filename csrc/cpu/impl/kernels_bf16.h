// The kernels for bfloat16 activations in slabs of 16 bits, for an instruction set: as kernels.h, with Isa<BFloat16>.
#pragma once

#include "cpu/impl/columns.h"
#include "cpu/impl/forward.h"

namespace {

const KernelsOfBFloat16 table{Isa<BFloat16>::kWidths, forward<float, BFloat16>, columns<float, BFloat16>};

}  // namespace
