#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.h"
#include "core/float16.h"

#include "cpu/avx2_impl.h"

namespace {

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr int kWidth = 32;
  static constexpr int kColumnsWidth = 32;
};
template <>
struct Limits<double> {
  static constexpr int kWidth = 16;
  static constexpr int kColumnsWidth = 16;
};

template <class F>
void with_width(float, int width, F&& f) {
  switch (width) {
    case 32: return f.template operator()<F8, 4>();
    case 16: return f.template operator()<F8, 2>();
    case 8: return f.template operator()<F8, 1>();
    default: return f.template operator()<F4, 1>();
  }
}

template <class F>
void with_width(double, int width, F&& f) {
  switch (width) {
    case 16: return f.template operator()<D4, 4>();
    case 8: return f.template operator()<D4, 2>();
    default: return f.template operator()<D4, 1>();
  }
}

}  // namespace

#include "cpu/kernels_impl.h"

namespace dendnorm::cpu {
const Kernels& kernels_avx2() { return table; }
}  // namespace dendnorm::cpu
