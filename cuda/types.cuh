// Element types on the device, and 16-byte pieces of them, the unit of every load of activations.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/float16.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace dendnorm::cuda {
namespace {

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// An activation as the type of the values, and back.
template <class T, class A>
__device__ __forceinline__ T read_as(A value) {
  if constexpr (sizeof(A) == 2) {
    return to_float(value);
  } else {
    return static_cast<T>(value);
  }
}

template <class A, class T>
__device__ __forceinline__ A write_as(T value) {
  if constexpr (sizeof(A) == 2) {
    return from_float<A>(value);
  } else {
    return static_cast<A>(value);
  }
}

// 16 bytes of activations.
template <class A>
struct Piece {
  static constexpr int kCount = 16 / sizeof(A);
  uint4 bits;

  template <class T>
  __device__ __forceinline__ void unpack(T (&out)[kCount]) const {
    if constexpr (sizeof(A) == 2) {
      const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[2 * i] = to_float(A{static_cast<std::uint16_t>(words[i] & 0xffffu)});
        out[2 * i + 1] = to_float(A{static_cast<std::uint16_t>(words[i] >> 16)});
      }
    } else {
      __builtin_memcpy(out, &bits, sizeof bits);
    }
  }
};

template <class A>
__device__ __forceinline__ Piece<A> load_global(const std::byte* at) {
  return {__ldg(reinterpret_cast<const uint4*>(at))};
}

template <class A>
__device__ __forceinline__ Piece<A> load_shared(const std::byte* at) {
  return {*reinterpret_cast<const uint4*>(at)};
}

// kCount neighbours in shared memory, from a place aligned to all of them together or to 16 bytes.
template <class T, int kCount>
__device__ __forceinline__ void read_run(const T* from, T (&to)[kCount]) {
  static_assert(kCount * sizeof(T) % 16 == 0, "a run is read 16 bytes at a time");
#pragma unroll
  for (int i = 0; i < kCount; i += 16 / static_cast<int>(sizeof(T))) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from + i);
    __builtin_memcpy(to + i, &bits, sizeof bits);
  }
}

// The same pointer, of which the compiler forgets how it came about: else it adds base and offset anew for every load.
__device__ __forceinline__ const std::byte* settled(const std::byte* pointer) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// The sum over the lanes of a warp, the same bits in every lane, for a + b = b + a.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
  return value;
}

// f(A{}) with the element type of the activations.
template <class T, class F>
auto with_type(Type type, F f) {
  if constexpr (sizeof(T) == 8) {
    return f(double{});
  } else {
    switch (type) {
      case Type::kBFloat16: return f(BFloat16{});
      case Type::kFloat16: return f(Float16{});
      default: return f(float{});
    }
  }
}

// f(kLanes) for the number of lanes that a host chose, a power of 2 from kLeast to kMost, as a constant.
template <int kMost, int kLeast = 1, class F>
auto with_lanes(int lanes, F f) {
  if constexpr (kMost > kLeast) {
    if (lanes < kMost) return with_lanes<kMost / 2, kLeast>(lanes, f);
  }
  return f(std::integral_constant<int, kMost>{});
}

}  // namespace
}  // namespace dendnorm::cuda
