#include "cpu/conv_pack.h"

#include "core/float16.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

template <class A, class T>
T read(const A& value) {
  if constexpr (sizeof(A) == 2) {
    return to_float(value);
  } else {
    return static_cast<T>(value);
  }
}
template <class A, class T>
A write(T value) {
  if constexpr (sizeof(A) == 2) {
    return from_float<A>(value);
  } else {
    return static_cast<A>(value);
  }
}

template <class T, class F>
void with_type(Type type, F f) {
  if constexpr (sizeof(T) == 8) {
    f(double{});
  } else {
    switch (type) {
      case Type::kBFloat16: return f(BFloat16{});
      case Type::kFloat16: return f(Float16{});
      default: return f(float{});
    }
  }
}

}  // namespace

template <class T>
void pack_images(const Images& from, const ImageSizes& s, i64 lanes, const Slab<T>& to, const Threads& threads) {
  const i64 tiles = (s.samples + lanes - 1) / lanes;
  with_type<T>(from.type, [&](auto a) {
    using A = decltype(a);
    auto body = [&](i64 begin, i64 end) {
      for (i64 item = begin; item < end; ++item) {
        const i64 tile = item / s.channels, c = item % s.channels;
        for (i64 h = 0; h < s.height; ++h) {
          for (i64 w = 0; w < s.width; ++w) {
            T* out = to.data + tile * to.tile + c * to.channel + h * to.row + w * to.column;
            const A* in = static_cast<const A*>(from.data) + c * from.channel + h * from.row + w * from.column;
            for (i64 b = 0; b < lanes; ++b) {
              const i64 sample = tile * lanes + b;
              out[b] = sample < s.samples ? read<A, T>(in[sample * from.sample]) : T(0);
            }
          }
        }
      }
    };
    threads(tiles * s.channels, body);
  });
}

template <class T>
void unpack_images(const Slab<T>& from, const ImageSizes& s, i64 lanes, const Images& to, const Threads& threads) {
  const i64 tiles = (s.samples + lanes - 1) / lanes;
  with_type<T>(to.type, [&](auto a) {
    using A = decltype(a);
    auto body = [&](i64 begin, i64 end) {
      for (i64 item = begin; item < end; ++item) {
        const i64 tile = item / s.channels, c = item % s.channels;
        for (i64 h = 0; h < s.height; ++h) {
          for (i64 w = 0; w < s.width; ++w) {
            const T* in = from.data + tile * from.tile + c * from.channel + h * from.row + w * from.column;
            A* out = static_cast<A*>(to.data) + c * to.channel + h * to.row + w * to.column;
            for (i64 b = 0; b < lanes && tile * lanes + b < s.samples; ++b) {
              out[(tile * lanes + b) * to.sample] = write<A>(in[b]);
            }
          }
        }
      }
    };
    threads(tiles * s.channels, body);
  });
}

template <class T>
void sum_images(const Slab<T>& images, const ImageSizes& s, i64 lanes, T* sums, const Threads& threads) {
  const i64 tiles = (s.samples + lanes - 1) / lanes;
  auto body = [&](i64 begin, i64 end) {
    for (i64 c = begin; c < end; ++c) {
      double total = 0;
      for (i64 tile = 0; tile < tiles; ++tile) {
        for (i64 h = 0; h < s.height; ++h) {
          T row[64] = {};
          const T* from = images.data + tile * images.tile + c * images.channel + h * images.row;
          for (i64 w = 0; w < s.width; ++w) {
            for (i64 b = 0; b < lanes; ++b) row[b] += from[w * images.column + b];
          }
          for (i64 b = 0; b < lanes; ++b) total += row[b];
        }
      }
      sums[c] = static_cast<T>(total);
    }
  };
  threads(s.channels, body);
}

#define DENDNORM_INSTANTIATE(T)                                                                             \
  template void pack_images(const Images&, const ImageSizes&, i64, const Slab<T>&, const Threads&);         \
  template void unpack_images(const Slab<T>&, const ImageSizes&, i64, const Images&, const Threads&);       \
  template void sum_images(const Slab<T>&, const ImageSizes&, i64, T*, const Threads&);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cpu
