#include "cpu/isa/neon.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<BFloat16> {
  static constexpr Widths kWidths{32, 32};

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 32: return f.template operator()<F4, 8>();
      case 16: return f.template operator()<F4, 4>();
      default: return f.template operator()<F4, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels_bf16.h"

namespace dendnorm::cpu {
const KernelsOfBFloat16& kernels_neon_bf16() { return table; }
}  // namespace dendnorm::cpu
