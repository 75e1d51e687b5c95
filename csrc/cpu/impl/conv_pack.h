// Images of any strides and types <-> slabs that lie one channel behind the other.
#pragma once

#include "cpu/impl/base.h"
#include "cpu/impl/pack.h"

namespace {

template <class T>
constexpr i64 kConvLanes = Isa<T>::Conv::kLanes;

// Channels lie side by side: squares of samples by channels, two squares wide for a whole line, column by column.
// f(images, slab, channels) for each square's first sample; channels that fill no square one by one.
template <class T, class F>
DENDNORM_INLINE void for_squares(i64 channels, i64 width, F f) {
  constexpr i64 kSide = Square<T>::kSide;
  const i64 whole = channels / kSide * kSide;
  for (i64 c0 = 0; c0 < whole; c0 += 2 * kSide) {
    const i64 c1 = smaller(c0 + 2 * kSide, whole);
    for (i64 w = 0; w < width; ++w) {
      for (i64 c = c0; c < c1; c += kSide) f(c, w);
    }
  }
}

template <class A, class T>
void pack_channels(const Images& from, const ImageSizes& s, const Slab<T>& to, const A* in, T* out, i64 samples) {
  using S = Square<T>;
  constexpr i64 kLanes = kConvLanes<T>, kSide = S::kSide;
  for_squares<T>(s.channels, s.width, [&](i64 c, i64 w) {
    for (i64 b = 0; b < kLanes; b += kSide) {
      typename S::Row rows[kSide];
#pragma GCC unroll 8
      for (int r = 0; r < kSide; ++r) {
        rows[r] = b + r < samples ? S::load(in + (b + r) * from.sample + w * from.column + c) : S::zero();
      }
      S::transpose(rows);
#pragma GCC unroll 8
      for (int r = 0; r < kSide; ++r) S::store(out + (c + r) * to.channel + w * kLanes + b, rows[r]);
    }
  });
  for (i64 c = s.channels / kSide * kSide; c < s.channels; ++c) {
    for (i64 w = 0; w < s.width; ++w) {
      for (i64 b = 0; b < kLanes; ++b) {
        out[c * to.channel + w * kLanes + b] =
            b < samples ? read_as<A, T>(in[b * from.sample + w * from.column + c]) : T(0);
      }
    }
  }
}

template <class A, class T>
void unpack_channels(const Slab<T>& from, const ImageSizes& s, const Images& to, const T* in, A* out, i64 samples) {
  using S = Square<T>;
  constexpr i64 kLanes = kConvLanes<T>, kSide = S::kSide;
  for_squares<T>(s.channels, s.width, [&](i64 c, i64 w) {
    for (i64 b = 0; b < samples; b += kSide) {
      typename S::Row rows[kSide];
#pragma GCC unroll 8
      for (int r = 0; r < kSide; ++r) rows[r] = S::load(in + (c + r) * from.channel + w * kLanes + b);
      S::transpose(rows);
#pragma GCC unroll 8
      for (int r = 0; r < kSide; ++r) {
        if (b + r < samples) S::store(out + (b + r) * to.sample + w * to.column + c, rows[r]);
      }
    }
  });
  for (i64 c = s.channels / kSide * kSide; c < s.channels; ++c) {
    for (i64 w = 0; w < s.width; ++w) {
      for (i64 b = 0; b < samples; ++b) {
        out[b * to.sample + w * to.column + c] = write_as<A>(in[c * from.channel + w * kLanes + b]);
      }
    }
  }
}

// body(tile, channel or row, samples) for all of them.
template <class T, class F>
DENDNORM_INLINE void for_parts(const ImageSizes& s, i64 parts, const Threads& threads, F f) {
  constexpr i64 kLanes = kConvLanes<T>;
  const i64 tiles = (s.samples + kLanes - 1) / kLanes;
  auto body = [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; ++item) {
      const i64 tile = item / parts;
      f(tile, item % parts, smaller(kLanes, s.samples - tile * kLanes));
    }
  };
  threads(tiles * parts, body);
}

template <class A, class T>
void pack_images_as(const Images& from, const ImageSizes& s, const Slab<T>& to, const Threads& threads) {
  constexpr i64 kLanes = kConvLanes<T>;
  const A* images = static_cast<const A*>(from.data);
  if (from.channel == 1 && s.channels > 1 && kLanes % Square<T>::kSide == 0) {
    for_parts<T>(s, s.height, threads, [&](i64 tile, i64 h, i64 samples) {
      pack_channels(from, s, to, images + tile * kLanes * from.sample + h * from.row,
                    to.data + tile * to.tile + h * to.row, samples);
    });
    return;
  }
  const bool whole = from.row == s.width * from.column;
  const i64 rows = whole ? 1 : s.height, width = whole ? s.height * s.width : s.width;
  for_parts<T>(s, s.channels, threads, [&](i64 tile, i64 c, i64 samples) {
    for (i64 h = 0; h < rows; ++h) {
      const A* in = images + tile * kLanes * from.sample + c * from.channel + h * from.row;
      T* out = to.data + tile * to.tile + c * to.channel + h * to.row;
      if (from.column == 1) {
        transpose_in(in, from.sample, samples, width, out, kLanes);
        continue;
      }
      for (i64 w = 0; w < width; ++w) {
        for (i64 b = 0; b < kLanes; ++b) {
          out[w * kLanes + b] = b < samples ? read_as<A, T>(in[b * from.sample + w * from.column]) : T(0);
        }
      }
    }
  });
}

template <class A, class T>
void unpack_images_as(const Slab<T>& from, const ImageSizes& s, const Images& to, const Threads& threads) {
  constexpr i64 kLanes = kConvLanes<T>;
  A* images = static_cast<A*>(to.data);
  if (to.channel == 1 && s.channels > 1 && kLanes % Square<T>::kSide == 0) {
    for_parts<T>(s, s.height, threads, [&](i64 tile, i64 h, i64 samples) {
      unpack_channels(from, s, to, from.data + tile * from.tile + h * from.row,
                      images + tile * kLanes * to.sample + h * to.row, samples);
    });
    return;
  }
  const bool whole = to.row == s.width * to.column;
  const i64 rows = whole ? 1 : s.height, width = whole ? s.height * s.width : s.width;
  for_parts<T>(s, s.channels, threads, [&](i64 tile, i64 c, i64 samples) {
    for (i64 h = 0; h < rows; ++h) {
      const T* in = from.data + tile * from.tile + c * from.channel + h * from.row;
      A* out = images + tile * kLanes * to.sample + c * to.channel + h * to.row;
      if (to.column == 1) {
        transpose_out(in, kLanes, samples, width, out, to.sample);
        continue;
      }
      for (i64 w = 0; w < width; ++w) {
        for (i64 b = 0; b < samples; ++b) out[b * to.sample + w * to.column] = write_as<A>(in[w * kLanes + b]);
      }
    }
  });
}

template <class T>
void pack_images(const Images& from, const ImageSizes& s, const Slab<T>& to, const Threads& threads) {
  if constexpr (sizeof(T) == 8) {
    pack_images_as<double>(from, s, to, threads);
  } else {
    switch (from.type) {
      case Type::kBFloat16: return pack_images_as<BFloat16>(from, s, to, threads);
      case Type::kFloat16: return pack_images_as<Float16>(from, s, to, threads);
      default: return pack_images_as<float>(from, s, to, threads);
    }
  }
}

template <class T>
void unpack_images(const Slab<T>& from, const ImageSizes& s, const Images& to, const Threads& threads) {
  if constexpr (sizeof(T) == 8) {
    unpack_images_as<double>(from, s, to, threads);
  } else {
    switch (to.type) {
      case Type::kBFloat16: return unpack_images_as<BFloat16>(from, s, to, threads);
      case Type::kFloat16: return unpack_images_as<Float16>(from, s, to, threads);
      default: return unpack_images_as<float>(from, s, to, threads);
    }
  }
}

}  // namespace
