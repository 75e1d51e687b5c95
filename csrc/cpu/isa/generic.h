// The portable vectors: GCC's and Clang's vector extension at the width that every processor has.
#pragma once

#include "cpu/impl/base.h"

namespace {

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

  typedef std::uint32_t Bits __attribute__((vector_size(16)));
  static Bits load_bits(const BFloat16* p) {
    Bits bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static V even(Bits b) { return reinterpret_cast<V>(b << 16); }
  static V odd(Bits b) { return reinterpret_cast<V>(b & 0xffff0000u); }
  static V dot(Bits x, Bits y, V sum) { return fma(odd(x), odd(y), fma(even(x), even(y), sum)); }
  static void interleave(V& x, V& y) {
    const V even = x, odd = y;
    x = V{even[0], odd[0], even[1], odd[1]};
    y = V{even[2], odd[2], even[3], odd[3]};
  }
};

template <class T>
struct Square {
  static constexpr int kSide = 4;
  struct Row {
    T v[4];
  };
  static Row zero() { return {}; }
  template <class A>
  static Row load(const A* p) {
    return {{read_as<A, T>(p[0]), read_as<A, T>(p[1]), read_as<A, T>(p[2]), read_as<A, T>(p[3])}};
  }
  template <class A>
  static void store(A* p, const Row& row) {
    for (int i = 0; i < 4; ++i) p[i] = write_as<A>(row.v[i]);
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
