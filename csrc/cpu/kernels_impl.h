// The kernels themselves, over a vector type. Included once by every kernels_*.cpp after it has defined, in an
// anonymous namespace, for T = float and double:
//
//   Limits<T>::kWidth, kColumnsWidth      the widest tile, in samples, of the forward pass and of the pass over columns
//   with_width(T{}, width, f)             calls f.operator()<Vec, NV>() with Vec::kLanes * NV == width, for 4 <= width
//   Vec: Scalar, V, kLanes; load, store (aligned), zero, set1, mul, add, fma, sum, reduce4, reduce8
//   Square<T>: kSide, Row; load<A>, store<A>, transpose over kSide rows, the unit of packing
//   to_float(A), from_float<A>(float) for the 16-bit types
//
// Everything here has internal linkage and nothing comes from the standard library's templates: otherwise the linker
// might keep a copy compiled for a newer processor than the one that runs it.

#define DENDNORM_INLINE __attribute__((always_inline)) inline

namespace {

using dendnorm::cpu::Activations;
using dendnorm::cpu::Columns;
using dendnorm::cpu::Factors;
using dendnorm::cpu::Forward;
using dendnorm::cpu::Kernels;
using dendnorm::cpu::Threads;
using dendnorm::cpu::Type;
using dendnorm::cpu::View;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr i64 kGrain = 16;   // neurons: work is cut between multiples of it
constexpr i64 kBlock = 128;  // neurons whose tiles are held between the product and their transposition, at most
constexpr i64 kAlign = 64;

DENDNORM_INLINE i64 smaller(i64 x, i64 y) { return x < y ? x : y; }
DENDNORM_INLINE i64 larger(i64 x, i64 y) { return x > y ? x : y; }
DENDNORM_INLINE i64 divided_up(i64 x, i64 y) { return (x + y - 1) / y; }
DENDNORM_INLINE i64 aligned(i64 bytes) { return divided_up(bytes, kAlign) * kAlign; }

// ---- Tiles of the batch ----

// `full` tiles of the widest width and up to two narrower ones; a single sample is a tile of width 1. A function of
// the shape alone.
struct Tiles {
  i64 samples, full;
  int width;
  int tail[2];
  int tails;

  i64 count() const { return full + tails; }
  int width_of(i64 t) const { return t < full ? width : tail[t - full]; }
  i64 begin(i64 t) const {
    if (t <= full) return t * width;
    return full * width + tail[0];
  }
  i64 samples_of(i64 t) const { return smaller(width_of(t), samples - begin(t)); }
  i64 total() const { return full * width + (tails > 0 ? tail[0] : 0) + (tails > 1 ? tail[1] : 0); }
};

inline int covering_width(i64 samples) {
  int width = 4;
  while (width < samples) width *= 2;
  return width;
}

inline Tiles tiles_of(i64 samples, int widest) {
  if (samples == 1) return {1, 1, 1, {0, 0}, 0};
  Tiles tiles{samples, samples / widest, widest, {0, 0}, 0};
  const i64 rest = samples - tiles.full * widest;
  if (rest == 0) return tiles;
  int width = covering_width(rest);
  if (width >= 32 && 4 * rest <= 3 * width) {  // two tiles waste less than one
    tiles.tail[tiles.tails++] = width / 2;
    width = covering_width(rest - width / 2);
  }
  tiles.tail[tiles.tails++] = width;
  return tiles;
}

// ---- Splitting work ----

// The first segment s with cost(s) = start[s] + 4 s >= share; the 4 stands for what a segment costs by itself.
inline i64 segment_at(const i32* start, i64 segments, i64 share) {
  i64 low = 0, high = segments;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (start[middle] + 4 * middle < share) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Where part `part` of `parts` begins: equal cost, whole blocks.
inline i64 part_begin(const i32* start, i64 segments, i64 part, i64 parts) {
  if (part <= 0) return 0;
  if (part >= parts) return segments;
  const i64 cost = start[segments] + 4 * segments;
  const i64 segment = segment_at(start, segments, cost / parts * part);
  return smaller(segments, (segment + kGrain / 2) / kGrain * kGrain);
}

// How many neurons are packed or unpacked at a time. Rows whose distance is a multiple of 1 KiB share few sets of a
// cache, which loses their lines soon: the more of every row is used at once, the fewer lines are fetched twice.
inline i64 block_of(const Activations& x) {
  const i64 size = x.type == Type::kFloat64 ? 8 : x.type == Type::kFloat32 ? 4 : 2;
  return !x.feature_major && x.stride * size % 1024 == 0 ? kBlock : kBlock / 2;
}

constexpr i64 kWorthThreads = 30000;  // connections times samples

inline int worthwhile_threads(const Threads& threads, i64 connections, i64 samples, i64 neurons) {
  return connections * samples + 4 * neurons * samples < kWorthThreads ? 1 : threads.count;
}

// ---- Packing: (samples, neurons) in any layout and type <-> [neurons][width] in T ----

template <class A, class T>
DENDNORM_INLINE T read_as(A value) {
  if constexpr (sizeof(A) == 2) {
    return to_float(value);
  } else {
    return static_cast<T>(value);
  }
}

template <class A, class T>
DENDNORM_INLINE A write_as(T value) {
  if constexpr (sizeof(A) == 2) {
    return from_float<A>(value);
  } else {
    return static_cast<A>(value);
  }
}

// dst[n * width + b] = src[b * stride + n]; samples to `width` are filled with zeros.
template <class A, class T>
inline void transpose_in(const A* src, i64 stride, i64 samples, i64 neurons, T* dst, i64 width) {
  using S = Square<T>;
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
        dst[n * width + b + r] = r < left ? read_as<A, T>(src[(b + r) * stride + n]) : T(0);
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
      for (i64 r = b; r < width; ++r) dst[n * width + r] = T(0);
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
    for (i64 b = samples; b < width; ++b) dst[n * width + b] = T(0);
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

// Where the tiles of a slab lie: packed, or in place where the caller's memory is one already.
template <class T>
struct Slabs {
  T* base;
  i64 neurons;
  i64 in_place_stride;  // 0: packed

  T* tile(const Tiles& tiles, i64 t) const {
    return in_place_stride != 0 ? base + tiles.begin(t) : base + tiles.begin(t) * neurons;
  }
  i64 stride(const Tiles& tiles, i64 t) const { return in_place_stride != 0 ? in_place_stride : tiles.width_of(t); }
};

// A feature-major matrix of whole, aligned tiles needs no copy, unless its rows would fall into the same few cache
// sets; nor does a single sample.
template <class T>
inline bool usable_in_place(const Activations& x, const Tiles& tiles) {
  const Type type = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
  if (x.type != type) return false;
  if (tiles.samples == 1) return !x.feature_major || x.stride == 1;
  const i64 bytes = x.stride * static_cast<i64>(sizeof(T));
  const i64 misfit = reinterpret_cast<std::uintptr_t>(x.data) % kAlign;
  return x.feature_major && tiles.total() == tiles.samples && tiles.tails <= 1 && misfit == 0 && bytes % kAlign == 0 &&
         bytes % 2048 != 0;
}

// The rows of one tile where they lie: feature-major, whole and aligned. Null where they must be packed and unpacked.
template <class T>
inline T* rows_in_place(const Activations& x, i64 sample, i64 samples, i64 width) {
  const Type type = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
  if (!x.feature_major || x.type != type || samples != width) return nullptr;
  T* rows = static_cast<T*>(x.data) + sample;
  const i64 misfit = reinterpret_cast<std::uintptr_t>(rows) % kAlign;
  return misfit == 0 && x.stride * static_cast<i64>(sizeof(T)) % kAlign == 0 ? rows : nullptr;
}

template <class T>
inline i64 slab_bytes(const Tiles& tiles, i64 neurons) {
  return aligned(tiles.total() * neurons * static_cast<i64>(sizeof(T)));
}

// ---- The inner loops ----

// acc[t] = sum over the connections of a row of w times the sample vectors of its inputs.
template <class Vec, int NV, bool kPerm>
DENDNORM_INLINE void row_sum(const typename Vec::Scalar* slab, i64 stride, const i32* index, const i32* perm,
                             const typename Vec::Scalar* values, i64 begin, i64 end, typename Vec::V* acc) {
  constexpr int kFlight = NV == 1 ? 4 : 2;  // connections in flight hide the latency of the sum
  typename Vec::V sums[kFlight][NV];
#pragma GCC unroll 4
  for (int u = 0; u < kFlight; ++u) {
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) sums[u][t] = Vec::zero();
  }
  i64 k = begin;
  for (; k + kFlight <= end; k += kFlight) {
#pragma GCC unroll 4
    for (int u = 0; u < kFlight; ++u) {
      const auto* x = slab + index[k + u] * stride;
      const auto w = Vec::set1(kPerm ? values[perm[k + u]] : values[k + u]);
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) sums[u][t] = Vec::fma(w, Vec::load(x + t * Vec::kLanes), sums[u][t]);
    }
  }
  for (; k < end; ++k) {
    const auto* x = slab + index[k] * stride;
    const auto w = Vec::set1(kPerm ? values[perm[k]] : values[k]);
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) sums[0][t] = Vec::fma(w, Vec::load(x + t * Vec::kLanes), sums[0][t]);
  }
#pragma GCC unroll 8
  for (int t = 0; t < NV; ++t) {
    if constexpr (kFlight == 4) {
      acc[t] = Vec::add(Vec::add(sums[0][t], sums[1][t]), Vec::add(sums[2][t], sums[3][t]));
    } else {
      acc[t] = Vec::add(sums[0][t], sums[1][t]);
    }
  }
}

template <class T>
inline T row_dot(const T* x, const i32* index, const i32* perm, const T* values, i64 begin, i64 end) {
  T sums[4] = {};
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sums[u] += values[perm[k + u]] * x[index[k + u]];
  }
  for (; k < end; ++k) sums[0] += values[perm[k]] * x[index[k]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// ---- Y = X W^T + bias ----

template <class T>
struct ForwardPlan {
  Tiles tiles;
  bool in_place, permute;
  i64 spread;         // 0, or the parts of the columns, which spread their inputs over the outputs
  i64 slabs, values;  // bytes
};

constexpr i64 kSpreadBytes = 128 * 1024;

// A single sample is faster to compute over the columns, whose values and indices are read in order, as long as the
// outputs that they add to stay near. Every part of the columns has sums of its own; how many there are decides the
// order of addition, so it follows from the work and not from the threads.
template <class T>
i64 spread_of(const Forward<T>& f) {
  if (f.samples != 1 || f.outputs * static_cast<i64>(sizeof(T)) > kSpreadBytes) return 0;
  i64 parts = 1;
  while (parts < 8 && f.connections >= kWorthThreads * parts) parts *= 2;
  return parts;
}

// In the loop a value that lies in column order costs a second index; in a copy in row order it does not, but that pays
// only where the values are read again for another tile.
template <class T>
ForwardPlan<T> plan_forward(const Forward<T>& f) {
  ForwardPlan<T> plan;
  plan.tiles = tiles_of(f.samples, Limits<T>::kWidth);
  plan.in_place = usable_in_place<T>(f.x, plan.tiles);
  plan.permute = plan.tiles.count() > 1;
  plan.spread = spread_of(f);
  plan.slabs = plan.in_place ? 0 : slab_bytes<T>(plan.tiles, f.inputs);
  if (plan.spread > 0) plan.slabs = plan.spread * slab_bytes<T>(plan.tiles, f.outputs);
  plan.values = plan.permute ? aligned(f.connections * static_cast<i64>(sizeof(T))) : 0;
  return plan;
}

template <class T>
std::size_t forward_workspace(const Forward<T>& f) {
  const ForwardPlan<T> plan = plan_forward(f);
  return static_cast<std::size_t>(plan.slabs + plan.values);
}

// The output of a row, from its sum.
template <class T>
DENDNORM_INLINE T finished(const Forward<T>& f, i64 i, T sum) {
  if (f.factors.first != nullptr) sum *= f.factors.first[i];
  if (f.factors.second != nullptr) sum *= f.factors.second[i];
  return f.bias != nullptr ? sum + f.bias[i] : sum;
}

template <class Vec, int NV, bool kPerm>
inline void forward_tile(const Forward<typename Vec::Scalar>& f, const typename Vec::Scalar* slab, i64 stride,
                         const typename Vec::Scalar* values, i64 sample, i64 samples, i64 begin, i64 end) {
  using T = typename Vec::Scalar;
  constexpr i64 kWidth = Vec::kLanes * NV;
  alignas(kAlign) T block[kBlock * kWidth];
  const i64 step = block_of(f.y);
  T* rows = rows_in_place<T>(f.y, sample, samples, kWidth);
  for (i64 i0 = begin; i0 < end; i0 += step) {
    const i64 count = smaller(step, end - i0);
    for (i64 r = 0; r < count; ++r) {
      const i64 i = i0 + r;
      typename Vec::V acc[NV];
      row_sum<Vec, NV, kPerm>(slab, stride, f.rows.index, f.rows.perm, values, f.rows.start[i], f.rows.start[i + 1],
                              acc);
      if (f.factors.first != nullptr) {
        const auto factor = Vec::set1(f.factors.first[i]);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) acc[t] = Vec::mul(acc[t], factor);
        if (f.factors.second != nullptr) {
          const auto second = Vec::set1(f.factors.second[i]);
#pragma GCC unroll 8
          for (int t = 0; t < NV; ++t) acc[t] = Vec::mul(acc[t], second);
        }
      }
      if (f.bias != nullptr) {
        const auto bias = Vec::set1(f.bias[i]);
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) acc[t] = Vec::add(acc[t], bias);
      }
      T* out = rows != nullptr ? rows + i * f.y.stride : block + r * kWidth;
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) Vec::store(out + t * Vec::kLanes, acc[t]);
    }
    if (rows == nullptr) unpack(block, kWidth, f.y, sample, samples, i0, count);
  }
}

template <class T>
inline void forward_single(const Forward<T>& f, const T* x, const T* values, i64 begin, i64 end) {
  T block[kBlock];
  for (i64 i0 = begin; i0 < end; i0 += kBlock) {
    const i64 count = smaller(kBlock, end - i0);
    for (i64 r = 0; r < count; ++r) {
      const i64 i = i0 + r;
      block[r] = finished(f, i, row_dot(x, f.rows.index, f.rows.perm, values, f.rows.start[i], f.rows.start[i + 1]));
    }
    unpack(block, 1, f.y, 0, 1, i0, count);
  }
}

// Where part `part` of `parts` of the neurons begins.
inline i64 grain_begin(i64 neurons, i64 part, i64 parts) {
  return smaller(neurons, divided_up(neurons, kGrain) * part / parts * kGrain);
}

// The items, shared among so many threads.
template <class F>
void in_threads(const Threads& threads, int count, i64 items, F& body) {
  if (count == 1) {
    body(0, items);
  } else {
    threads(items, body);
  }
}

// How many pieces of every tile make the work of all threads equal.
inline i64 parts_per_tile(i64 tiles, int threads) {
  i64 parts = 1;
  while (parts < threads && tiles * parts % threads != 0) ++parts;
  return parts;
}

// sums = what the columns begin to end give.
template <class T>
inline void spread_single(const Forward<T>& f, T* sums, i64 begin, i64 end) {
  T x_block[kBlock];
  for (i64 i = 0; i < f.outputs; ++i) sums[i] = 0;
  for (i64 j0 = begin; j0 < end; j0 += kBlock) {
    const i64 count = smaller(kBlock, end - j0);
    pack(f.x, 0, 1, j0, count, x_block, 1);
    for (i64 r = 0; r < count; ++r) {
      const T x = x_block[r];
      for (i64 k = f.columns.start[j0 + r]; k < f.columns.start[j0 + r + 1]; ++k) {
        sums[f.columns.index[k]] += f.values[k] * x;
      }
    }
  }
}

// The outputs, from the sums of all parts.
template <class T>
inline void gather_single(const Forward<T>& f, const T* sums, i64 parts) {
  T block[kBlock];
  for (i64 i0 = 0; i0 < f.outputs; i0 += kBlock) {
    const i64 count = smaller(kBlock, f.outputs - i0);
    for (i64 r = 0; r < count; ++r) {
      T sum = sums[i0 + r];
      for (i64 p = 1; p < parts; ++p) sum += sums[p * f.outputs + i0 + r];
      block[r] = finished(f, i0 + r, sum);
    }
    unpack(block, 1, f.y, 0, 1, i0, count);
  }
}

template <class T>
void forward_spread(const Forward<T>& f, i64 parts, int threads) {
  T* sums = reinterpret_cast<T*>(f.workspace);
  auto compute = [&](i64 first, i64 last) {
    for (i64 part = first; part < last; ++part) {
      spread_single(f, sums + part * f.outputs, part_begin(f.columns.start, f.inputs, part, parts),
                    part_begin(f.columns.start, f.inputs, part + 1, parts));
    }
  };
  in_threads(f.threads, threads, parts, compute);
  gather_single(f, sums, parts);
}

template <class T>
void forward(const Forward<T>& f) {
  if (f.samples == 0 || f.outputs == 0) return;
  const ForwardPlan<T> plan = plan_forward(f);
  const Tiles& tiles = plan.tiles;
  T* packed = reinterpret_cast<T*>(f.workspace);
  T* permuted = reinterpret_cast<T*>(f.workspace + plan.slabs);
  const Slabs<T> slabs{plan.in_place ? static_cast<T*>(f.x.data) : packed, f.inputs,
                       plan.in_place && f.samples > 1 ? f.x.stride : 0};
  const int threads = worthwhile_threads(f.threads, f.connections, f.samples, f.inputs + f.outputs);
  if (plan.spread > 0) return forward_spread(f, plan.spread, threads);

  // Every thread packs the tiles, or pieces of one, that it then reads.
  const i64 pack_parts = plan.in_place ? 0 : parts_per_tile(tiles.count(), threads);
  const i64 pieces = pack_parts * tiles.count();
  auto prepare = [&](i64 begin, i64 end) {
    if (plan.permute) {
      const i64 from = f.connections * begin / threads, to = f.connections * end / threads;
      for (i64 k = from; k < to; ++k) permuted[k] = f.values[f.rows.perm[k]];
    }
    for (i64 piece = pieces * begin / threads; piece < pieces * end / threads; ++piece) {
      const i64 t = piece / pack_parts, part = piece % pack_parts, width = tiles.width_of(t);
      const i64 from = grain_begin(f.inputs, part, pack_parts), to = grain_begin(f.inputs, part + 1, pack_parts);
      pack(f.x, tiles.begin(t), tiles.samples_of(t), from, to - from, slabs.tile(tiles, t) + from * width, width);
    }
  };
  if (pieces > 0 || plan.permute) in_threads(f.threads, threads, threads, prepare);

  const T* values = plan.permute ? permuted : f.values;
  const i64 parts = parts_per_tile(tiles.count(), threads);
  auto compute = [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; ++item) {
      const i64 t = item / parts, part = item % parts;
      const i64 from = part_begin(f.rows.start, f.outputs, part, parts);
      const i64 to = part_begin(f.rows.start, f.outputs, part + 1, parts);
      const T* slab = slabs.tile(tiles, t);
      const int width = tiles.width_of(t);
      if (width == 1) {
        forward_single(f, slab, values, from, to);
        continue;
      }
      const i64 stride = slabs.stride(tiles, t), sample = tiles.begin(t), samples = tiles.samples_of(t);
      with_width(T{}, width, [&]<class Vec, int NV>() {
        plan.permute ? forward_tile<Vec, NV, false>(f, slab, stride, values, sample, samples, from, to)
                     : forward_tile<Vec, NV, true>(f, slab, stride, values, sample, samples, from, to);
      });
    }
  };
  in_threads(f.threads, threads, parts * tiles.count(), compute);
}

// ---- One pass over the columns ----

template <class T>
struct ColumnsPlan {
  Tiles tiles;
  bool in_place, scaled;
  i64 slabs, values, sums;  // bytes
};

template <class T>
ColumnsPlan<T> plan_columns(const Columns<T>& c) {
  ColumnsPlan<T> plan;
  plan.tiles = tiles_of(c.samples, Limits<T>::kColumnsWidth);
  plan.in_place = c.row_scale == nullptr && usable_in_place<T>(c.dy, plan.tiles);
  plan.scaled = c.row_scale == nullptr && c.dx.data != nullptr && c.factors.first != nullptr;
  plan.slabs = plan.in_place ? 0 : slab_bytes<T>(plan.tiles, c.outputs);
  plan.values = plan.scaled ? aligned(c.connections * static_cast<i64>(sizeof(T))) : 0;
  plan.sums = c.bias_gradient != nullptr ? aligned(plan.tiles.count() * c.outputs * static_cast<i64>(sizeof(T))) : 0;
  return plan;
}

template <class T>
std::size_t columns_workspace(const Columns<T>& c) {
  const ColumnsPlan<T> plan = plan_columns(c);
  return static_cast<std::size_t>(plan.slabs + plan.values + plan.sums);
}

template <class T>
inline double dot(const T* x, const T* y, i64 count) {
  double sums[8] = {};
  i64 k = 0;
  for (; k + 8 <= count; k += 8) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sums[u] += static_cast<double>(x[k + u]) * y[k + u];
  }
  for (; k < count; ++k) sums[0] += static_cast<double>(x[k]) * y[k];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// After the last tile: what the column's gradients still need.
template <class T>
DENDNORM_INLINE void finish_column(const Columns<T>& c, i64 j) {
  const i64 begin = c.columns.start[j], end = c.columns.start[j + 1];
  if (c.row_scale != nullptr) {
    if (c.dots != nullptr) c.dots[j] = dot(c.gradient + begin, c.values + begin, end - begin);
    if (c.finish && c.scale != T(1)) {
      for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.scale;
    }
    return;
  }
  if (c.dots != nullptr) {
    double sum = 0;
    for (i64 k = begin; k < end; ++k) {
      sum += c.dot_weights[c.columns.index[k]] * (static_cast<double>(c.gradient[k]) * c.values[k]);
    }
    c.dots[j] = sum;
  }
  if (c.finish && c.factors.first != nullptr) {
    for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.factors.first[c.columns.index[k]];
    if (c.factors.second != nullptr) {
      for (i64 k = begin; k < end; ++k) c.gradient[k] *= c.factors.second[c.columns.index[k]];
    }
  }
}

// G connections: each loads its row of dY once, for dX and for its own gradient.
template <class Vec, int NV, int G, bool kDx, bool kDw, int kChains>
DENDNORM_INLINE void column_group(const typename Vec::Scalar* slab, i64 stride, const i32* row,
                                  const typename Vec::Scalar* w, const typename Vec::V* x, typename Vec::V (*acc)[NV],
                                  typename Vec::Scalar* gradient, bool add) {
  typename Vec::V part[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    const auto* d = slab + row[g] * stride;
    typename Vec::V dy[NV];
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) dy[t] = Vec::load(d + t * Vec::kLanes);
    if constexpr (kDx) {
      const auto wv = Vec::set1(w[g]);
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) acc[g % kChains][t] = Vec::fma(wv, dy[t], acc[g % kChains][t]);
    }
    if constexpr (kDw) {
      part[g] = Vec::mul(x[0], dy[0]);
#pragma GCC unroll 8
      for (int t = 1; t < NV; ++t) part[g] = Vec::fma(x[t], dy[t], part[g]);
    }
  }
  if constexpr (kDw) {
    if constexpr (G == 8) {
      Vec::reduce8(part, gradient, add);
    } else if constexpr (G == 4) {
      Vec::reduce4(part, gradient, add);
    } else {
      gradient[0] = add ? gradient[0] + Vec::sum(part[0]) : Vec::sum(part[0]);
    }
  }
}

template <class Vec, int NV, bool kDx, bool kDw>
inline void columns_tile(const Columns<typename Vec::Scalar>& c, const typename Vec::Scalar* slab, i64 stride,
                         const typename Vec::Scalar* values, i64 sample, i64 samples, i64 begin, i64 end, bool first,
                         bool last) {
  using T = typename Vec::Scalar;
  constexpr i64 kWidth = Vec::kLanes * NV;
  constexpr int kChains = NV == 1 ? 2 : 1;
  alignas(kAlign) T x_block[kDw ? kBlock * kWidth : 1];
  alignas(kAlign) T dx_block[kDx ? kBlock * kWidth : 1];
  const i64 step = larger(kDw ? block_of(c.x) : 0, kDx ? block_of(c.dx) : 0);
  const T* x_rows = kDw ? rows_in_place<T>(c.x, sample, samples, kWidth) : nullptr;
  T* dx_rows = kDx ? rows_in_place<T>(c.dx, sample, samples, kWidth) : nullptr;
  for (i64 j0 = begin; j0 < end; j0 += step) {
    const i64 count = smaller(step, end - j0);
    if (kDw && x_rows == nullptr) pack(c.x, sample, samples, j0, count, x_block, kWidth);
    for (i64 r = 0; r < count; ++r) {
      const i64 j = j0 + r;
      typename Vec::V x[NV], acc[kChains][NV];
      if constexpr (kDw) {
        const T* from = x_rows != nullptr ? x_rows + j * c.x.stride : x_block + r * kWidth;
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) x[t] = Vec::load(from + t * Vec::kLanes);
      }
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) {
#pragma GCC unroll 2
        for (int u = 0; u < kChains; ++u) acc[u][t] = Vec::zero();
      }
      i64 k = c.columns.start[j];
      const i64 stop = c.columns.start[j + 1];
      const i32* row = c.columns.index;
      for (; k + 8 <= stop; k += 8) {
        column_group<Vec, NV, 8, kDx, kDw, kChains>(slab, stride, row + k, values + k, x, acc, c.gradient + k, !first);
      }
      if (k + 4 <= stop) {
        column_group<Vec, NV, 4, kDx, kDw, kChains>(slab, stride, row + k, values + k, x, acc, c.gradient + k, !first);
        k += 4;
      }
      for (; k < stop; ++k) {
        column_group<Vec, NV, 1, kDx, kDw, kChains>(slab, stride, row + k, values + k, x, acc, c.gradient + k, !first);
      }
      if constexpr (kDx) {
        T* out = dx_rows != nullptr ? dx_rows + j * c.dx.stride : dx_block + r * kWidth;
#pragma GCC unroll 8
        for (int t = 0; t < NV; ++t) {
          auto sum = kChains == 2 ? Vec::add(acc[0][t], acc[kChains - 1][t]) : acc[0][t];
          if (c.row_scale != nullptr) sum = Vec::mul(sum, Vec::set1(c.scale));
          Vec::store(out + t * Vec::kLanes, sum);
        }
      }
      if constexpr (kDw) {
        if (last) finish_column(c, j);
      }
    }
    if (kDx && dx_rows == nullptr) unpack(dx_block, kWidth, c.dx, sample, samples, j0, count);
  }
}

// One sample: dy is loaded once for both of a connection's products, as in the tiles.
template <class T, bool kDx, bool kDw>
inline T column_single(const T* dy, const i32* row, const T* values, T x, T* gradient, i64 begin, i64 end) {
  T sums[4] = {};
  const auto step = [&](i64 k, T& sum) {
    const T d = dy[row[k]];
    if constexpr (kDw) gradient[k] = x * d;
    if constexpr (kDx) sum += values[k] * d;
  };
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(k + u, sums[u]);
  }
  for (; k < end; ++k) step(k, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T, bool kDx, bool kDw>
inline void columns_single(const Columns<T>& c, const T* dy, const T* values, i64 begin, i64 end) {
  T x_block[kBlock], dx_block[kBlock];
  for (i64 j0 = begin; j0 < end; j0 += kBlock) {
    const i64 count = smaller(kBlock, end - j0);
    if constexpr (kDw) pack(c.x, 0, 1, j0, count, x_block, 1);
    for (i64 r = 0; r < count; ++r) {
      const i64 from = c.columns.start[j0 + r], to = c.columns.start[j0 + r + 1];
      dx_block[r] =
          column_single<T, kDx, kDw>(dy, c.columns.index, values, kDw ? x_block[r] : T(0), c.gradient, from, to);
      if (c.row_scale != nullptr) dx_block[r] *= c.scale;
      if constexpr (kDw) finish_column(c, j0 + r);
    }
    if constexpr (kDx) unpack(dx_block, 1, c.dx, 0, 1, j0, count);
  }
}

template <class T, bool kDx, bool kDw>
void columns_part(const Columns<T>& c, const Tiles& tiles, const Slabs<T>& slabs, const T* values, i64 begin, i64 end) {
  for (i64 t = 0; t < tiles.count(); ++t) {
    const T* slab = slabs.tile(tiles, t);
    const int width = tiles.width_of(t);
    const bool first = t == 0, last = t + 1 == tiles.count();
    const i64 stride = slabs.stride(tiles, t), sample = tiles.begin(t), samples = tiles.samples_of(t);
    if (width == 1) {
      columns_single<T, kDx, kDw>(c, slab, values, begin, end);
      continue;
    }
    with_width(T{}, width, [&]<class Vec, int NV>() {
      columns_tile<Vec, NV, kDx, kDw>(c, slab, stride, values, sample, samples, begin, end, first, last);
    });
  }
}

template <class T>
inline T sum_of(const T* values, i64 count) {
  T sums[8] = {};
  i64 k = 0;
  for (; k + 8 <= count; k += 8) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sums[u] += values[k + u];
  }
  for (; k < count; ++k) sums[0] += values[k];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <class T>
void columns(const Columns<T>& c) {
  const ColumnsPlan<T> plan = plan_columns(c);
  const Tiles& tiles = plan.tiles;
  T* packed = reinterpret_cast<T*>(c.workspace);
  T* scaled = reinterpret_cast<T*>(c.workspace + plan.slabs);
  T* sums = reinterpret_cast<T*>(c.workspace + plan.slabs + plan.values);
  const Slabs<T> slabs{plan.in_place ? static_cast<T*>(c.dy.data) : packed, c.outputs,
                       plan.in_place && c.samples > 1 ? c.dy.stride : 0};
  const int threads = worthwhile_threads(c.threads, c.connections, c.samples, c.inputs + c.outputs);

  const bool visit = !plan.in_place || c.bias_gradient != nullptr;
  const i64 pack_parts = visit ? parts_per_tile(tiles.count(), threads) : 0;
  const i64 pieces = pack_parts * tiles.count();
  auto prepare = [&](i64 begin, i64 end) {
    if (plan.scaled) {
      const i64 from = c.connections * begin / threads, to = c.connections * end / threads;
      const i32* row = c.columns.index;
      for (i64 k = from; k < to; ++k) scaled[k] = c.values[k] * c.factors.first[row[k]];
      if (c.factors.second != nullptr) {
        for (i64 k = from; k < to; ++k) scaled[k] *= c.factors.second[row[k]];
      }
    }
    for (i64 piece = pieces * begin / threads; piece < pieces * end / threads; ++piece) {
      const i64 t = piece / pack_parts, part = piece % pack_parts;
      const i64 from = grain_begin(c.outputs, part, pack_parts), to = grain_begin(c.outputs, part + 1, pack_parts);
      const i64 width = tiles.width_of(t), stride = slabs.stride(tiles, t);
      T* slab = slabs.tile(tiles, t);
      for (i64 i0 = from; i0 < to; i0 += kBlock) {
        const i64 count = smaller(kBlock, to - i0);
        if (!plan.in_place) {
          pack(c.dy, tiles.begin(t), tiles.samples_of(t), i0, count, slab + i0 * width, width);
        }
        if (c.bias_gradient != nullptr) {
          for (i64 i = i0; i < i0 + count; ++i) sums[t * c.outputs + i] = sum_of(slab + i * stride, width);
        }
        if (c.row_scale != nullptr) {
          for (i64 i = i0; i < i0 + count; ++i) {
            const T scale = c.row_scale[i];
            for (i64 b = i * stride; b < i * stride + width; ++b) slab[b] *= scale;
          }
        }
      }
    }
  };
  if (pieces > 0 || plan.scaled) in_threads(c.threads, threads, threads, prepare);
  if (c.bias_gradient != nullptr) {
    for (i64 i = 0; i < c.outputs; ++i) {
      T sum = 0;
      for (i64 t = 0; t < tiles.count(); ++t) sum += sums[t * c.outputs + i];
      c.bias_gradient[i] = sum;
    }
  }

  const T* values = plan.scaled ? scaled : c.values;
  const bool dx = c.dx.data != nullptr, dw = c.gradient != nullptr;
  if (tiles.count() == 0) {
    for (i64 k = 0; dw && k < c.connections; ++k) c.gradient[k] = 0;
    for (i64 j = 0; c.dots != nullptr && j < c.inputs; ++j) c.dots[j] = 0;
    return;
  }
  auto compute = [&](i64 begin, i64 end) {
    for (i64 part = begin; part < end; ++part) {
      const i64 from = part_begin(c.columns.start, c.inputs, part, threads);
      const i64 to = part_begin(c.columns.start, c.inputs, part + 1, threads);
      if (dx && dw) {
        columns_part<T, true, true>(c, tiles, slabs, values, from, to);
      } else if (dx) {
        columns_part<T, true, false>(c, tiles, slabs, values, from, to);
      } else if (dw) {
        columns_part<T, false, true>(c, tiles, slabs, values, from, to);
      }
    }
  };
  in_threads(c.threads, threads, threads, compute);
}

const Kernels table{forward<float>,           forward<double>,          columns<float>,
                    columns<double>,          forward_workspace<float>, forward_workspace<double>,
                    columns_workspace<float>, columns_workspace<double>};

}  // namespace
