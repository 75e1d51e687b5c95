// A layer in data, as the kernels of every device know it: pointers and sizes, no Torch.
//
// Notation: B samples, N inputs, M outputs. A layer's values v lie in the order of its column view (grouped by input).
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace dendnorm {

enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A (samples, neurons) matrix. Batch-major: neurons are adjacent and `stride` is between samples. Feature-major:
// samples are adjacent and `stride` is between neurons. Any stride, any alignment of a whole element.
struct Activations {
  void* data = nullptr;
  std::int64_t stride = 0;
  bool feature_major = false;
  Type type = Type::kFloat32;
};

// One compressed view of the pattern.
struct View {
  const std::int32_t* start = nullptr;  // (segments + 1,)
  const std::int32_t* index = nullptr;  // (nnz,)
  const std::int32_t* perm = nullptr;   // (nnz,) where the values of a row view lie in column order
};

// The excitability e: none (1), one for all rows, or one for each.
template <class T>
struct Excitability {
  const T* data = nullptr;
  bool per_row = false;

  DENDNORM_HD double of(std::int64_t row) const {
    return data == nullptr ? 1.0 : static_cast<double>(data[per_row ? row : 0]);
  }
};

}  // namespace dendnorm
