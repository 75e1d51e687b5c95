// What sizes and numbers of connections a layer may have; c10::ValueError where it may not.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#include "core/shares.h"

namespace dendnorm::nn {

inline int64_t checked_size(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(1 <= value && value < kMaxIndex, name, " must be in [1, 2^31 - 1), got ", value);
  return value;
}

inline int64_t counted(const std::optional<double>& density, const std::optional<int64_t>& nnz, int64_t positions) {
  try {
    return connections(density, nnz, positions);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

}  // namespace dendnorm::nn
