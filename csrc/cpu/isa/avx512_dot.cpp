#include "cpu/isa/avx512.h"
#include "cpu/kernels.h"

namespace {

// Two samples at a time. The instruction takes subnormal numbers for 0, and rounds as ever, whatever the caller's
// modes.
struct Dot16 : F16 {
  static V dot(Bits x, Bits y, V sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y); }
};
struct Dot8 : F8 {
  static V dot(Bits x, Bits y, V sum) { return _mm256_dpbf16_ps(sum, (__m256bh)x, (__m256bh)y); }
};
struct Dot4 : F4 {
  static V dot(Bits x, Bits y, V sum) { return _mm_dpbf16_ps(sum, (__m128bh)x, (__m128bh)y); }
};

template <>
struct Isa<BFloat16> {
  static constexpr Widths kWidths{64, 128};

  template <class F>
  static void with_width(int width, F&& f) {
    switch (width) {
      case 128: return f.template operator()<Dot16, 8>();
      case 64: return f.template operator()<Dot16, 4>();
      case 32: return f.template operator()<Dot16, 2>();
      case 16: return f.template operator()<Dot8, 2>();
      default: return f.template operator()<Dot4, 2>();
    }
  }
};

}  // namespace

#include "cpu/impl/kernels_bf16.h"

namespace dendnorm::cpu {
const KernelsOfBFloat16& kernels_avx512_dot() { return table; }
}  // namespace dendnorm::cpu
