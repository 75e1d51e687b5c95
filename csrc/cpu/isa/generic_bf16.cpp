#include "cpu/isa/generic.h"
#include "cpu/kernels.h"

namespace {

template <>
struct Isa<BFloat16> {
  static constexpr Widths kWidths{16, 16};

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 16: return f.template operator()<Lanes<float>, 4>();
      default: return f.template operator()<Lanes<float>, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels_bf16.h"

namespace dendnorm::cpu {
const KernelsOfBFloat16& kernels_generic_bf16() { return table; }
}  // namespace dendnorm::cpu
