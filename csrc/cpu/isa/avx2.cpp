#include "cpu/isa/avx2.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<float> {
  static constexpr Widths kWidths{32, 32};
  using Conv = F8;
  static constexpr int kGathered = 12, kFused = 8;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 32: return f.template operator()<F8, 4>();
      case 16: return f.template operator()<F8, 2>();
      case 8: return f.template operator()<F8, 1>();
      default: return f.template operator()<F4, 1>();
    }
  }
};

template <>
struct Isa<double> {
  static constexpr Widths kWidths{16, 16};
  using Conv = D4;
  static constexpr int kGathered = 12, kFused = 8;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 16: return f.template operator()<D4, 4>();
      case 8: return f.template operator()<D4, 2>();
      default: return f.template operator()<D4, 1>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels.h"

namespace dendnorm::cpu {
const Kernels& kernels_avx2() { return table; }
}  // namespace dendnorm::cpu
