// What only the values can show to be wrong, said without anybody waiting for it: four numbers in the memory of the
// device that found it. Kernels that write look at them first; the host reads them when it has time to.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace dendnorm {

enum class Fault : std::int64_t {
  kNan = 1,       // weakest: the score at `position` is not a number
  kDropped,       // excise: detail[0] connections were to be dropped, detail[1] are
  kCount,         // replace_connections: detail[0] connections are dropped, and there are detail[1] keys
  kKey,           // replace_connections: the key at `position`, detail[0], is out of [0, detail[2]) or not above the
                  // one before it, detail[1]
  kOccupied,      // replace_connections: so is the key at `position`, detail[0], in a pattern of detail[1] rows
  kOtherPattern,  // the layers that share a weight have different patterns
  kValue,         // plan_rewiring: the value of the new connection at `position` is not finite
};

constexpr std::int64_t kClear = 0x7FFFFFFFFFFFFFFF;

// Of several codes the least is what counts: the first kind, and of that the first position. So the outcome does not
// depend on which thread comes first.
DENDNORM_HD inline std::int64_t code_of(Fault fault, std::int64_t position) {
  return static_cast<std::int64_t>(fault) << 32 | position;
}

struct Status {
  std::int64_t code = kClear;
  std::int64_t detail[3] = {0, 0, 0};

  Fault fault() const { return static_cast<Fault>(code >> 32); }
  std::int64_t position() const { return code & 0xFFFFFFFF; }
};

constexpr std::int64_t kStatusWords = 4;
static_assert(sizeof(Status) == kStatusWords * sizeof(std::int64_t));

}  // namespace dendnorm
