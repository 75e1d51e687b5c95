// The portable kernels: GCC's and Clang's vector extension at the width that every processor has.
#include <cstdint>

#include "cpu/kernels.h"
#include "core/float16.h"

namespace {

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr int kWidth = 16;
  static constexpr int kColumnsWidth = 16;
};
template <>
struct Limits<double> {
  static constexpr int kWidth = 8;
  static constexpr int kColumnsWidth = 8;
};

template <class T>
struct Lanes {
  using Scalar = T;
  typedef T V __attribute__((vector_size(16)));
  static constexpr int kLanes = 16 / sizeof(T);
  static V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static void store(T* p, V x) { *reinterpret_cast<V*>(p) = x; }
  static V zero() { return V{}; }
  static V set1(T x) { return x - V{}; }
  static V mul(V x, V y) { return x * y; }
  static V add(V x, V y) { return x + y; }
  static V fma(V x, V y, V z) { return x * y + z; }
  static T sum(V x) {
    T total = x[0];
    for (int i = 1; i < kLanes; ++i) total += x[i];
    return total;
  }
  struct Sums {
    T of[4];
  };
  static Sums fold(const V* p) { return {{sum(p[0]), sum(p[1]), sum(p[2]), sum(p[3])}}; }
  static void put4(const Sums& sums, T* out, bool add) {
    for (int g = 0; g < 4; ++g) out[g] = add ? out[g] + sums.of[g] : sums.of[g];
  }
  static constexpr int kFolds = 1;
};

template <class F>
void with_width(float, int width, F&& f) {
  switch (width) {
    case 16: return f.template operator()<Lanes<float>, 4>();
    case 8: return f.template operator()<Lanes<float>, 2>();
    default: return f.template operator()<Lanes<float>, 1>();
  }
}

template <class F>
void with_width(double, int width, F&& f) {
  switch (width) {
    case 8: return f.template operator()<Lanes<double>, 4>();
    default: return f.template operator()<Lanes<double>, 2>();
  }
}

template <class A, class T>
T widened(A x) {
  if constexpr (sizeof(A) == 2) {
    return to_float(x);
  } else {
    return x;
  }
}

template <class T>
struct Square {
  static constexpr int kSide = 4;
  struct Row {
    T v[4];
  };
  static Row zero() { return {}; }
  template <class A>
  static Row load(const A* p) {
    return {{widened<A, T>(p[0]), widened<A, T>(p[1]), widened<A, T>(p[2]), widened<A, T>(p[3])}};
  }
  template <class A>
  static void store(A* p, const Row& row) {
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(A) == 2) {
        p[i] = from_float<A>(row.v[i]);
      } else {
        p[i] = row.v[i];
      }
    }
  }
  static void transpose(Row* rows) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const T kept = rows[i].v[j];
        rows[i].v[j] = rows[j].v[i];
        rows[j].v[i] = kept;
      }
    }
  }
};

}  // namespace

#include "cpu/kernels_impl.h"

namespace dendnorm::cpu {
const Kernels& kernels_generic() { return table; }
}  // namespace dendnorm::cpu
