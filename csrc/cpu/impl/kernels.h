// The kernels of an instruction set. Its source in csrc/cpu/isa includes this last, after all that impl/base.h asks
// for.
#pragma once

#include "cpu/impl/columns.h"
#include "cpu/impl/forward.h"

namespace {

const Kernels table{{Isa<float>::kWidths, forward<float>, columns<float>},
                    {Isa<double>::kWidths, forward<double>, columns<double>}};

}  // namespace
