#include "cpu/isa/generic.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<float> {
  static constexpr Widths kWidths{16, 16};
  using Conv = Lanes<float>;
  static constexpr int kGathered = 8, kFused = 8;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 16: return f.template operator()<Lanes<float>, 4>();
      case 8: return f.template operator()<Lanes<float>, 2>();
      default: return f.template operator()<Lanes<float>, 1>();
    }
  }
};

template <>
struct Isa<double> {
  static constexpr Widths kWidths{8, 8};
  using Conv = Lanes<double>;
  static constexpr int kGathered = 8, kFused = 8;

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 8: return f.template operator()<Lanes<double>, 4>();
      default: return f.template operator()<Lanes<double>, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels.h"

namespace dendnorm::cpu {
const Kernels& kernels_generic() { return table; }
}  // namespace dendnorm::cpu
