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
