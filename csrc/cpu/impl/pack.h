// Packing: (samples, neurons) in any layout and type <-> [neurons][width] in T.
#pragma once

#include "cpu/impl/base.h"

namespace {

// dst[n * width + b] = src[b * stride + n]; samples to `width` are filled with zeros.
template <class A, class T>
inline void transpose_in(const A* src, i64 stride, i64 samples, i64 neurons, T* dst, i64 width) {
  using S = Square<T>;
  static_assert(kGrain % S::kSide == 0, "work is cut between whole squares");
  const i64 whole = neurons / S::kSide * S::kSide;
  i64 b = 0;
  for (; b + S::kSide <= samples; b += S::kSide) {
    for (i64 n = 0; n < whole; n += S::kSide) {
      typename S::Row rows[S::kSide];
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) rows[r] = S::load(src + (b + r) * stride + n);
      S::transpose(rows);
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) S::store(dst + (n + r) * width + b, rows[r]);
    }
    for (i64 n = whole; n < neurons; ++n) {
      for (i64 r = b; r < b + S::kSide; ++r) dst[n * width + r] = read_as<A, T>(src[r * stride + n]);
    }
  }
  if (b < samples && b + S::kSide <= width) {  // the rest of the samples, and zeros up to the next square
    const i64 left = samples - b;
    for (i64 n = 0; n < whole; n += S::kSide) {
      typename S::Row rows[S::kSide];
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) {
        rows[r] = r < left ? S::load(src + (b + r) * stride + n) : S::zero();
      }
      S::transpose(rows);
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) S::store(dst + (n + r) * width + b, rows[r]);
    }
    for (i64 n = whole; n < neurons; ++n) {
      for (i64 r = 0; r < S::kSide; ++r) {
        dst[n * width + b + r] = r < left ? read_as<A, T>(src[(b + r) * stride + n]) : T{};
      }
    }
    b += S::kSide;
  } else if (b < samples) {
    for (i64 n = 0; n < neurons; ++n) {
      for (i64 r = b; r < samples; ++r) dst[n * width + r] = read_as<A, T>(src[r * stride + n]);
    }
    b = samples;
  }
  if (b < width) {
    for (i64 n = 0; n < neurons; ++n) {
      for (i64 r = b; r < width; ++r) dst[n * width + r] = T{};
    }
  }
}

// dst[b * stride + n] = src[n * width + b].
template <class A, class T>
inline void transpose_out(const T* src, i64 width, i64 samples, i64 neurons, A* dst, i64 stride) {
  using S = Square<T>;
  const i64 whole = neurons / S::kSide * S::kSide;
  i64 b = 0;
  for (; b + S::kSide <= width && b < samples; b += S::kSide) {
    const i64 here = smaller(S::kSide, samples - b);
    for (i64 n = 0; n < whole; n += S::kSide) {
      typename S::Row rows[S::kSide];
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) rows[r] = S::load(src + (n + r) * width + b);
      S::transpose(rows);
#pragma GCC unroll 8
      for (int r = 0; r < S::kSide; ++r) {
        if (r < here) S::store(dst + (b + r) * stride + n, rows[r]);
      }
    }
    for (i64 n = whole; n < neurons; ++n) {
      for (i64 r = b; r < b + here; ++r) dst[r * stride + n] = write_as<A>(src[n * width + r]);
    }
  }
  for (; b < samples; ++b) {
    for (i64 n = 0; n < neurons; ++n) dst[b * stride + n] = write_as<A>(src[n * width + b]);
  }
}

template <class A, class T>
inline void copy_in(const A* src, i64 stride, i64 samples, i64 neurons, T* dst, i64 width) {
  for (i64 n = 0; n < neurons; ++n) {
    for (i64 b = 0; b < samples; ++b) dst[n * width + b] = read_as<A, T>(src[n * stride + b]);
    for (i64 b = samples; b < width; ++b) dst[n * width + b] = T{};
  }
}

template <class A, class T>
inline void copy_out(const T* src, i64 width, i64 samples, i64 neurons, A* dst, i64 stride) {
  for (i64 n = 0; n < neurons; ++n) {
    for (i64 b = 0; b < samples; ++b) dst[n * stride + b] = write_as<A>(src[n * width + b]);
  }
}

template <class A, class T>
inline void pack_as(const Activations& from, i64 sample, i64 samples, i64 neuron, i64 neurons, T* dst, i64 width) {
  const A* data = static_cast<const A*>(from.data);
  if (from.feature_major) {
    copy_in(data + neuron * from.stride + sample, from.stride, samples, neurons, dst, width);
  } else {
    transpose_in(data + sample * from.stride + neuron, from.stride, samples, neurons, dst, width);
  }
}

template <class A, class T>
inline void unpack_as(const T* src, i64 width, const Activations& to, i64 sample, i64 samples, i64 neuron,
                      i64 neurons) {
  A* data = static_cast<A*>(to.data);
  if (to.feature_major) {
    copy_out(src, width, samples, neurons, data + neuron * to.stride + sample, to.stride);
  } else {
    transpose_out(src, width, samples, neurons, data + sample * to.stride + neuron, to.stride);
  }
}

template <class T>
inline void pack(const Activations& from, i64 sample, i64 samples, i64 neuron, i64 neurons, T* dst, i64 width) {
  if constexpr (sizeof(T) == 8) {
    pack_as<double>(from, sample, samples, neuron, neurons, dst, width);
  } else if constexpr (sizeof(T) == 2) {
    pack_as<T>(from, sample, samples, neuron, neurons, dst, width);
  } else {
    switch (from.type) {
      case Type::kBFloat16: return pack_as<BFloat16>(from, sample, samples, neuron, neurons, dst, width);
      case Type::kFloat16: return pack_as<Float16>(from, sample, samples, neuron, neurons, dst, width);
      default: return pack_as<float>(from, sample, samples, neuron, neurons, dst, width);
    }
  }
}

template <class T>
inline void unpack(const T* src, i64 width, const Activations& to, i64 sample, i64 samples, i64 neuron, i64 neurons) {
  if constexpr (sizeof(T) == 8) {
    unpack_as<double>(src, width, to, sample, samples, neuron, neurons);
  } else {
    switch (to.type) {
      case Type::kBFloat16: return unpack_as<BFloat16>(src, width, to, sample, samples, neuron, neurons);
      case Type::kFloat16: return unpack_as<Float16>(src, width, to, sample, samples, neuron, neurons);
      default: return unpack_as<float>(src, width, to, sample, samples, neuron, neurons);
    }
  }
}

// The rows of one tile where they lie: feature-major, whole and aligned. Null where they must be packed and unpacked.
template <class T>
inline T* rows_in_place(const Activations& x, i64 sample, i64 samples, i64 width) {
  const Type type = sizeof(T) == 8 ? Type::kFloat64 : sizeof(T) == 4 ? Type::kFloat32 : Type::kBFloat16;
  if (!x.feature_major || x.type != type || samples != width) return nullptr;
  T* rows = static_cast<T*>(x.data) + sample;
  const i64 misfit = reinterpret_cast<std::uintptr_t>(rows) % kAlign;
  return misfit == 0 && x.stride * static_cast<i64>(sizeof(T)) % kAlign == 0 ? rows : nullptr;
}

// Neurons of a tile, so many at a time, into its slab.
template <class T>
void pack_tile(const Activations& from, const Tiles& tiles, i64 t, i64 begin, i64 end, i64 step, T* slab) {
  const i64 width = tiles.width_of(t), sample = tiles.begin(t), samples = tiles.samples_of(t);
  for (i64 i = begin; i < end; i += step) {
    pack(from, sample, samples, i, smaller(step, end - i), slab + i * width, width);
  }
}

// prepare(tile, begin, end) for what the threads `first` to `last` of so many pack of `neurons`.
template <class F>
DENDNORM_INLINE void for_pieces(const Packing& packing, i64 neurons, i64 first, i64 last, int threads, F&& prepare) {
  const i64 parts = packing.parts, end = share_begin(packing.pieces, last, threads);
  for (i64 piece = share_begin(packing.pieces, first, threads); piece < end; ++piece) {
    const i64 part = piece % parts;
    prepare(piece / parts, grain_begin(neurons, part, parts), grain_begin(neurons, part + 1, parts));
  }
}

}  // namespace
