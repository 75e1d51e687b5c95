// What a convolution does to images: sizes and steps, for the kernels of every device.
//
// A pattern of a convolution has a row for each filter and a column for each tap of its window: tap (c, y, x) of the
// channels of the filter's group is column (c * height + y) * width + x.
#pragma once

#include <array>
#include <cstdint>

namespace dendnorm {

struct Window {
  std::array<std::int64_t, 2> kernel{1, 1}, stride{1, 1};  // rows, columns
  std::array<std::int64_t, 4> padding{0, 0, 0, 0};         // above, below, left, right: zeros
  std::array<std::int64_t, 2> dilation{1, 1};
  std::int64_t groups = 1;

  std::int64_t area() const { return kernel[0] * kernel[1]; }
  // From the first row (d = 0) or column (1) that a window reads to the last.
  std::int64_t extent(int d) const { return dilation[d] * (kernel[d] - 1) + 1; }
  // How often the window fits; below 1 where it does not.
  template <class Size>
  Size positions(int d, const Size& size) const {
    const Size rest = size + (padding[2 * d] + padding[2 * d + 1] - extent(d));
    return rest / stride[d] + 1;
  }
};

}  // namespace dendnorm
