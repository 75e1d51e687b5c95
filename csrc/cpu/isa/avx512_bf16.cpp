#include "cpu/isa/avx512.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<BFloat16> {
  static constexpr Widths kWidths{64, 64};

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 64: return f.template operator()<F16, 4>();
      case 32: return f.template operator()<F16, 2>();
      case 16: return f.template operator()<F8, 2>();
      default: return f.template operator()<F4, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels_bf16.h"

namespace dendnorm::cpu {
const KernelsOfBFloat16& kernels_avx512_bf16() { return table; }
}  // namespace dendnorm::cpu
