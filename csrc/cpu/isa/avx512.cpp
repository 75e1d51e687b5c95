#include "cpu/isa/avx512.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<float> {
  static constexpr Widths kWidths{32, 64};
  using Conv = F16;
  static constexpr int kGathered = 28, kFused = 16;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 64: return f.template operator()<F16, 4>();
      case 32: return f.template operator()<F16, 2>();
      case 16: return f.template operator()<F16, 1>();
      case 8: return f.template operator()<F8, 1>();
      default: return f.template operator()<F4, 1>();
    }
  }
};

template <>
struct Isa<double> {
  static constexpr Widths kWidths{32, 32};
  using Conv = D8;
  static constexpr int kGathered = 28, kFused = 16;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 32: return f.template operator()<D8, 4>();
      case 16: return f.template operator()<D8, 2>();
      case 8: return f.template operator()<D8, 1>();
      default: return f.template operator()<D4, 1>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels.h"

namespace dendnorm::cpu {
const Kernels& kernels_avx512() { return table; }
}  // namespace dendnorm::cpu
