#include "cpu/isa/neon.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<float> {
  static constexpr Widths kWidths{32, 32};
  using Conv = F4;
  static constexpr int kGathered = 28, kFused = 12;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 32: return f.template operator()<F4, 8>();
      case 16: return f.template operator()<F4, 4>();
      case 8: return f.template operator()<F4, 2>();
      default: return f.template operator()<F4, 1>();
    }
  }
};

template <>
struct Isa<double> {
  static constexpr Widths kWidths{16, 16};
  using Conv = D2;
  static constexpr int kGathered = 28, kFused = 12;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 16: return f.template operator()<D2, 8>();
      case 8: return f.template operator()<D2, 4>();
      default: return f.template operator()<D2, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels.h"

namespace dendnorm::cpu {
const Kernels& kernels_neon() { return table; }
}  // namespace dendnorm::cpu
