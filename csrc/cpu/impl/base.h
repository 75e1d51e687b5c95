// What the kernels are written over, and the rule for all of csrc/cpu/impl and csrc/cpu/isa.
//
// These files are compiled once for every instruction set. So everything in them has internal linkage, and nothing
// comes from the standard library's templates or is an inline function of another header: otherwise the linker might
// keep a copy compiled for a newer processor than the one that runs it. What is shared is declared only or always
// inlined, as in cpu/plan.h, or has internal linkage itself, as core/float16.h. tests/cpp/symbols.cmake checks the
// objects.
//
// A set is a header and a source in csrc/cpu/isa. For T = float and double they define
//
//   Isa<T>     kWidths: the widest tiles; with_width(width, f): calls f.operator()<Vec, NV>() with
//              Vec::kLanes * NV == width, for 4 <= width
//   Square<T>  the unit of packing, kSide rows of as many: kSide, Row; zero, load<A>, store<A>, transpose
//   Vec        Scalar, V, kLanes; load, store (aligned), zero, set1, mul, add, fma; set4 (a vector for each of four
//              values), where that is better than four times set1;
//              the sums of vectors in two steps: fold (four vectors, half done), then put4 (one fold, to four places)
//              or, where kFolds > 1, put (so many folds)
//
// For slabs of bfloat16 an Isa<BFloat16> has widths of at least 8 with NV even, and its vectors also
//
//   Bits       two vectors of samples: load_bits (unaligned); even, odd: widened; dot(x, y, sum): sum plus x y;
//   interleave:
//              from even and odd ones to the order of the samples
//
// and, where it has a better one than impl's, a specialisation of an inner loop: RowSum, ColumnSums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float16.h"
#include "core/platform.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace {

using dendnorm::Activations;
using dendnorm::Type;
using dendnorm::cpu::Columns;
using dendnorm::cpu::ColumnsPlan;
using dendnorm::cpu::ConvAxis;
using dendnorm::cpu::ConvLimits;
using dendnorm::cpu::ConvPass;
using dendnorm::cpu::Forward;
using dendnorm::cpu::ForwardPlan;
using dendnorm::cpu::grain_begin;
using dendnorm::cpu::Images;
using dendnorm::cpu::ImageSizes;
using dendnorm::cpu::kAlign;
using dendnorm::cpu::kBlock;
using dendnorm::cpu::Kernels;
using dendnorm::cpu::KernelsOf;
using dendnorm::cpu::KernelsOfBFloat16;
using dendnorm::cpu::kGrain;
using dendnorm::cpu::Order;
using dendnorm::cpu::Packing;
using dendnorm::cpu::part_begin;
using dendnorm::cpu::Region;
using dendnorm::cpu::share_begin;
using dendnorm::cpu::Slab;
using dendnorm::cpu::Threads;
using dendnorm::cpu::Tiles;
using dendnorm::cpu::Widths;
using i32 = std::int32_t;
using i64 = std::int64_t;
using u16 = std::uint16_t;

template <class T>
struct Isa;
template <class T>
struct Square;

template <class Vec, int NV, Order kOrder, class S = typename Vec::Scalar>
struct RowSum;  // impl/forward.h
template <class Vec, int NV, bool kDx, bool kDw, class S = typename Vec::Scalar>
struct ColumnSums;  // impl/column_sums.h

DENDNORM_INLINE i64 smaller(i64 x, i64 y) { return x < y ? x : y; }

// An activation in the type that is computed with, and back.
template <class A, class T>
DENDNORM_INLINE T read_as(A value) {
  if constexpr (sizeof(A) == sizeof(T)) {
    return value;
  } else if constexpr (sizeof(A) == 2) {
    return to_float(value);
  } else {
    return static_cast<T>(value);
  }
}

template <class A, class T>
DENDNORM_INLINE A write_as(T value) {
  if constexpr (sizeof(A) == sizeof(T)) {
    return value;
  } else if constexpr (sizeof(A) == 2) {
    return from_float<A>(value);
  } else {
    return static_cast<A>(value);
  }
}

constexpr i64 kEndWork = 65536;  // numbers to add at the end of a pass: fewer are one thread's

// Where a region begins.
template <class T>
DENDNORM_INLINE T* in_region(std::byte* workspace, const Region& region) {
  return reinterpret_cast<T*>(workspace + region.begin);
}

// body(begin, end) for ranges of [0, count): what so many threads have to do.
template <class F>
void in_threads(const Threads& threads, int count, F& body) {
  if (count == 1) {
    body(0, 1);
  } else {
    threads(count, body);
  }
}

}  // namespace
