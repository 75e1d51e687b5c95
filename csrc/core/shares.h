// How many connections a share of positions is. Host code.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "core/pattern.h"

namespace dendnorm {

// Half to even, as Python rounds.
inline std::int64_t share_of(double share, std::int64_t count) {
  return static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(count)));
}

// With as many digits as tell it from others.
inline std::string exact_number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

// The number of connections that density or nnz asks for, among `positions`. Throws std::invalid_argument unless
// exactly one is given, density in (0, 1] or nnz in [0, positions], and the number below 2^31.
inline std::int64_t connections(std::optional<double> density, std::optional<std::int64_t> nnz,
                                std::int64_t positions) {
  const auto require = [](bool good, const std::string& message) {
    if (!good) throw std::invalid_argument(message);
  };
  require(density.has_value() || nnz.has_value(), "exactly one of density and nnz must be given, got neither");
  require(!density.has_value() || !nnz.has_value(),
          "exactly one of density and nnz must be given, got density=" + exact_number(density.value_or(0)) +
              " and nnz=" + std::to_string(nnz.value_or(0)));
  std::int64_t count = nnz.value_or(0);
  if (density.has_value()) {
    require(0 < *density && *density <= 1, "density must be in (0, 1], got " + exact_number(*density));
    count = share_of(*density, positions);
  }
  require(0 <= count && count <= positions, "nnz must be in [0, in_features * out_features] = [0, " +
                                                std::to_string(positions) + "], got " + std::to_string(count));
  require(count <= kMaxIndex, "nnz must be below 2^31, got " + std::to_string(count));
  return count;
}

}  // namespace dendnorm
