// The kernels themselves, over a vector type. Included once by every kernels_*.cpp after it has defined, in an
// anonymous namespace, for T = float and double:
//
//   Limits<T>::kWidth, kColumnsWidth      the widest tile, in samples, of the forward pass and of the pass over columns
//   with_width(T{}, width, f)             calls f.operator()<Vec, NV>() with Vec::kLanes * NV == width, for 4 <= width
//   Vec: Scalar, V, kLanes; load, store (aligned), zero, set1, mul, add, fma; set4 (a vector for each of four
//        values), where that is better than four times set1;
//        the sums of vectors in two steps: fold (four vectors, half done), then put4 (one fold, to four places) or,
//        where kFolds > 1, put (so many folds)
//   Square<T>: kSide, Row; load<A>, store<A>, transpose over kSide rows, the unit of packing
//   to_float(A), from_float<A>(float) for the 16-bit types
//
// Everything here has internal linkage and nothing comes from the standard library's templates: otherwise the linker
// might keep a copy compiled for a newer processor than the one that runs it.

#define DENDNORM_INLINE __attribute__((always_inline)) inline

namespace {

using dendnorm::Activations;
using dendnorm::Type;
using dendnorm::View;
using dendnorm::cpu::Columns;
using dendnorm::cpu::Factors;
using dendnorm::cpu::Forward;
using dendnorm::cpu::Kernels;
using dendnorm::cpu::Threads;
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
  i64 wide() const { return full + (tails > 0); }  // with the narrower ones as one
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

// Where part `part` of `parts` of the neurons begins.
inline i64 grain_begin(i64 neurons, i64 part, i64 parts) {
  return smaller(neurons, divided_up(neurons, kGrain) * part / parts * kGrain);
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

// Where the share of thread `thread` of so many begins among the items.
DENDNORM_INLINE i64 share_begin(i64 items, i64 thread, int threads) { return items * thread / threads; }

// How many pieces of every group make the work of all threads equal.
inline i64 parts_per_group(i64 groups, int threads) {
  i64 parts = 1;
  while (parts < threads && groups * parts % threads != 0) ++parts;
  return parts;
}

// How threads share equal groups of tiles. Where a share comes out as whole groups, a thread packs each tile as it
// comes to it, always into the same memory, which stays in its cache. A single tile that is soon packed every thread
// packs for itself. All other tiles are packed by all threads before anyone reads them.
struct Sharing {
  i64 parts;  // of every group
  bool alone;

  Sharing() = default;
  Sharing(i64 groups, i64 tiles, int threads, i64 neurons, i64 connections)
      : parts(parts_per_group(groups, threads)),
        alone(parts == 1 || (tiles == 1 && 4 * neurons * threads <= connections)) {}

  // Whether a thread that began with item `first` and packs alone has yet to pack the tiles of `item`.
  bool packs(i64 item, i64 first) const { return parts == 1 || item == first; }
};

// How many neurons are packed or unpacked at a time. Rows whose distance is a multiple of 1 KiB share few sets of a
// cache, which loses their lines soon: the more of every row is used at once, the fewer lines are fetched twice.
inline i64 block_of(const Activations& x) {
  const i64 size = x.type == Type::kFloat64 ? 8 : x.type == Type::kFloat32 ? 4 : 2;
  return !x.feature_major && x.stride * size % 1024 == 0 ? kBlock : kBlock / 2;
}

// How many neurons are packed at a time where nothing but the packing decides it. What comes from memory comes faster
// in long runs of a row.
inline i64 sweep_of(const Activations& x, i64 samples, i64 neurons) {
  constexpr i64 kFromMemory = i64{1} << 20;  // elements
  return !x.feature_major && samples * neurons > kFromMemory ? neurons : block_of(x);
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

// Whether the caller's memory is a slab already: feature-major, one tile, whole and aligned. More tiles side by side
// would do without a copy, too, but use few of the cache's sets: the products take 10 to 20 % longer than the copy.
template <class T>
inline bool usable_in_place(const Activations& x, const Tiles& tiles) {
  const Type type = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
  if (x.type != type || tiles.count() != 1) return false;
  if (tiles.samples == 1) return !x.feature_major || x.stride == 1;
  const i64 width = tiles.width_of(0);
  return x.feature_major && tiles.samples == width && x.stride == width &&
         reinterpret_cast<std::uintptr_t>(x.data) % kAlign == 0;
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

// Elements of the largest tile.
inline i64 tile_room(const Tiles& tiles, i64 neurons) { return tiles.count() == 0 ? 0 : tiles.width_of(0) * neurons; }

// Memory for all tiles, or for one of each thread.
template <class T>
inline i64 slab_bytes(const Tiles& tiles, const Sharing& sharing, int threads, i64 neurons) {
  const i64 elements = sharing.alone ? threads * tile_room(tiles, neurons) : tiles.total() * neurons;
  return aligned(elements * static_cast<i64>(sizeof(T)));
}

// ---- The inner loops ----

// How a row finds its values: through its permutation; in order, each by itself; in order, four at a time. Four at a
// time are fewer loads, but more instructions that wait where the samples come from afar.
enum class Order { kThrough, kOne, kFour };

// acc[t] = sum over the connections of a row of w times the sample vectors of its inputs.
template <class Vec, int NV, Order kOrder>
DENDNORM_INLINE void row_sum(const typename Vec::Scalar* slab, const i32* index, const i32* perm,
                             const typename Vec::Scalar* values, i64 begin, i64 end, typename Vec::V* acc) {
  constexpr i64 kWidth = Vec::kLanes * NV;
  constexpr int kFlight = NV == 1 ? 4 : 2;  // connections in flight hide the latency of the sum
  typename Vec::V sums[kFlight][NV];
#pragma GCC unroll 4
  for (int u = 0; u < kFlight; ++u) {
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) sums[u][t] = Vec::zero();
  }
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
    typename Vec::V w[4];
    if constexpr (kOrder == Order::kFour && requires { Vec::set4(values, w); }) {
      Vec::set4(values + k, w);
    } else {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) w[u] = Vec::set1(values[kOrder == Order::kThrough ? perm[k + u] : k + u]);
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const auto* x = slab + index[k + u] * kWidth;
#pragma GCC unroll 8
      for (int t = 0; t < NV; ++t) {
        sums[u % kFlight][t] = Vec::fma(w[u], Vec::load(x + t * Vec::kLanes), sums[u % kFlight][t]);
      }
    }
  }
#pragma GCC unroll 3
  for (int u = 0; u < 3; ++u) {
    if (k + u >= end) break;
    const auto* x = slab + index[k + u] * kWidth;
    const auto w = Vec::set1(values[kOrder == Order::kThrough ? perm[k + u] : k + u]);
#pragma GCC unroll 8
    for (int t = 0; t < NV; ++t) {
      sums[u % kFlight][t] = Vec::fma(w, Vec::load(x + t * Vec::kLanes), sums[u % kFlight][t]);
    }
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

// Bytes. A larger tile lies mostly beyond the second-level cache.
constexpr i64 kNearTile = i64{1} << 20;

template <class T>
struct ForwardPlan {
  Tiles tiles;
  int threads;
  Sharing sharing;
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
  plan.threads = worthwhile_threads(f.threads, f.connections, f.samples, f.inputs + f.outputs);
  plan.sharing = Sharing(plan.tiles.count(), plan.tiles.count(), plan.threads, f.inputs, f.connections);
  plan.in_place = usable_in_place<T>(f.x, plan.tiles);
  plan.permute = plan.tiles.count() > 1;
  plan.spread = spread_of(f);
  plan.slabs = plan.in_place ? 0 : slab_bytes<T>(plan.tiles, plan.sharing, plan.threads, f.inputs);
  if (plan.spread > 0) plan.slabs = aligned(plan.spread * f.outputs * static_cast<i64>(sizeof(T)));
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

template <class Vec, int NV, Order kOrder>
inline void forward_tile(const Forward<typename Vec::Scalar>& f, const typename Vec::Scalar* slab,
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
      row_sum<Vec, NV, kOrder>(slab, f.rows.index, f.rows.perm, values, f.rows.start[i], f.rows.start[i + 1], acc);
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
  auto compute = [&](i64 begin, i64 end) {
    for (i64 part = share_begin(parts, begin, threads); part < share_begin(parts, end, threads); ++part) {
      spread_single(f, sums + part * f.outputs, part_begin(f.columns.start, f.inputs, part, parts),
                    part_begin(f.columns.start, f.inputs, part + 1, parts));
    }
  };
  in_threads(f.threads, threads, compute);
  gather_single(f, sums, parts);
}

// Eight loads ahead of eight stores take about half the time of GCC 12's own loop.
template <class T>
inline void put_in_order(const T* values, const i32* perm, i64 begin, i64 end, T* ordered) {
  i64 k = begin;
  for (; k + 8 <= end; k += 8) {
    T eight[8];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) eight[u] = values[perm[k + u]];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) ordered[k + u] = eight[u];
  }
  for (; k < end; ++k) ordered[k] = values[perm[k]];
}

template <class T>
void pack_tile(const Activations& from, const Tiles& tiles, i64 t, i64 begin, i64 end, i64 step, T* slab) {
  const i64 width = tiles.width_of(t);
  for (i64 i = begin; i < end; i += step) {
    pack(from, tiles.begin(t), tiles.samples_of(t), i, smaller(step, end - i), slab + i * width, width);
  }
}

template <class T>
void forward(const Forward<T>& f) {
  if (f.samples == 0 || f.outputs == 0) return;
  const ForwardPlan<T> plan = plan_forward(f);
  const Tiles& tiles = plan.tiles;
  T* slabs = reinterpret_cast<T*>(plan.in_place ? static_cast<std::byte*>(f.x.data) : f.workspace);
  T* permuted = reinterpret_cast<T*>(f.workspace + plan.slabs);
  const int threads = plan.threads;
  if (plan.spread > 0) return forward_spread(f, plan.spread, threads);

  const i64 parts = plan.sharing.parts, sweep = sweep_of(f.x, f.samples, f.inputs);
  const bool alone = plan.sharing.alone && !plan.in_place;
  const bool far = tile_room(tiles, f.inputs) * static_cast<i64>(sizeof(T)) > kNearTile;
  const i64 pieces = plan.in_place || alone ? 0 : parts * tiles.count();
  auto prepare = [&](i64 begin, i64 end) {
    if (plan.permute) {
      put_in_order(f.values, f.rows.perm, share_begin(f.connections, begin, threads),
                   share_begin(f.connections, end, threads), permuted);
    }
    for (i64 piece = share_begin(pieces, begin, threads); piece < share_begin(pieces, end, threads); ++piece) {
      const i64 t = piece / parts, part = piece % parts;
      pack_tile(f.x, tiles, t, grain_begin(f.inputs, part, parts), grain_begin(f.inputs, part + 1, parts), sweep,
                slabs + tiles.begin(t) * f.inputs);
    }
  };
  if (pieces > 0 || plan.permute) in_threads(f.threads, threads, prepare);

  const T* values = plan.permute ? permuted : f.values;
  const i64 items = parts * tiles.count();
  auto compute = [&](i64 begin, i64 end) {
    T* own = alone ? slabs + begin * tile_room(tiles, f.inputs) : nullptr;
    const i64 first = share_begin(items, begin, threads);
    for (i64 item = first; item < share_begin(items, end, threads); ++item) {
      const i64 t = item / parts, part = item % parts;
      const i64 from = part_begin(f.rows.start, f.outputs, part, parts);
      const i64 to = part_begin(f.rows.start, f.outputs, part + 1, parts);
      if (alone && plan.sharing.packs(item, first)) pack_tile(f.x, tiles, t, 0, f.inputs, sweep, own);
      const T* slab = alone ? own : slabs + tiles.begin(t) * f.inputs;
      const int width = tiles.width_of(t);
      if (width == 1) {
        forward_single(f, slab, values, from, to);
        continue;
      }
      const i64 sample = tiles.begin(t), samples = tiles.samples_of(t);
      with_width(T{}, width, [&]<class Vec, int NV>() {
        const auto tile = !plan.permute ? forward_tile<Vec, NV, Order::kThrough>
                          : far         ? forward_tile<Vec, NV, Order::kOne>
                                        : forward_tile<Vec, NV, Order::kFour>;
        tile(f, slab, values, sample, samples, from, to);
      });
    }
  };
  in_threads(f.threads, threads, compute);
}

// ---- One pass over the columns ----

template <class T>
struct ColumnsPlan {
  Tiles tiles;
  int threads, groups;
  Sharing sharing;  // of the groups
  bool in_place, scaled;
  i64 distance;                        // elements between the sums of two groups
  i64 slabs, values, sums, gradients;  // bytes
};

// The tiles are taken in groups. Each has sums of its own for the gradient, so many bytes, which are added in the end:
// so a thread can have whole tiles to itself, with those samples of dY in its own cache. Groups have equally many of
// the widest tiles, where the narrower ones count as one, none has more than 4/3 of its share of the samples, and they
// follow from the shape alone.
inline int groups_of(const Tiles& tiles, i64 sums) {
  constexpr i64 kMemory = i64{16} << 20;
  if (tiles.wide() == 0 || 3 * tiles.wide() * tiles.width > 4 * tiles.samples) return 1;
  int groups = 1;
  while (groups < 8 && tiles.wide() % (2 * groups) == 0 && (2 * groups - 1) * sums <= kMemory) groups *= 2;
  return groups;
}

// The first tile of a group.
inline i64 group_begin(const Tiles& tiles, i64 group, int groups) {
  return group == groups ? tiles.count() : tiles.wide() / groups * group;
}

template <class T>
ColumnsPlan<T> plan_columns(const Columns<T>& c) {
  constexpr i64 kSize = sizeof(T);
  constexpr int kWidest = Limits<T>::kColumnsWidth;
  ColumnsPlan<T> plan;
  // Of many outputs half as many samples stay nearer; where that is not near either, threads had better share a tile.
  plan.tiles = tiles_of(c.samples, c.outputs * kWidest * kSize > 2 * kNearTile ? kWidest / 2 : kWidest);
  plan.threads = worthwhile_threads(c.threads, c.connections, c.samples, c.inputs + c.outputs);
  const bool shared = tile_room(plan.tiles, c.outputs) * kSize > 2 * kNearTile;
  plan.groups = shared ? 1 : groups_of(plan.tiles, c.gradient != nullptr ? c.connections * kSize : 0);
  plan.sharing = Sharing(plan.groups, plan.tiles.count(), plan.threads, c.outputs, c.connections);
  plan.in_place = c.row_scale == nullptr && usable_in_place<T>(c.dy, plan.tiles);
  plan.scaled = c.row_scale == nullptr && c.dx.data != nullptr && c.factors.first != nullptr;
  plan.slabs = plan.in_place ? 0 : slab_bytes<T>(plan.tiles, plan.sharing, plan.threads, c.outputs);
  plan.values = plan.scaled ? aligned(c.connections * kSize) : 0;
  plan.sums = c.bias_gradient != nullptr ? aligned(plan.tiles.count() * c.outputs * kSize) : 0;
  plan.distance = aligned(c.connections * kSize) / kSize;
  plan.gradients = c.gradient != nullptr ? (plan.groups - 1) * plan.distance * kSize : 0;
  return plan;
}

template <class T>
std::size_t columns_workspace(const Columns<T>& c) {
  const ColumnsPlan<T> plan = plan_columns(c);
  return static_cast<std::size_t>(plan.slabs + plan.values + plan.sums + plan.gradients);
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

// Up to four connections: each loads its row of dY once, for dX and for its own gradient, whose sums over the samples
// are returned half done.
template <class Vec, int NV, int G, bool kDx, bool kDw, int kChains>
DENDNORM_INLINE auto column_fold(const typename Vec::Scalar* slab, const i32* row, const typename Vec::Scalar* w,
                                 const typename Vec::V* x, typename Vec::V (*acc)[NV]) {
  constexpr i64 kWidth = Vec::kLanes * NV;
  typename Vec::V part[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    if (g >= G) {
      part[g] = Vec::zero();
      continue;
    }
    const auto* d = slab + row[g] * kWidth;
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
    return Vec::fold(part);
  } else {
    return 0;
  }
}

// The last one to three connections of a column.
template <class Vec, int NV, int G, bool kDx, bool kDw, int kChains>
DENDNORM_INLINE void column_rest(const typename Vec::Scalar* slab, const i32* row, const typename Vec::Scalar* w,
                                 const typename Vec::V* x, typename Vec::V (*acc)[NV], typename Vec::Scalar* gradient,
                                 bool add) {
  const auto folded = column_fold<Vec, NV, G, kDx, kDw, kChains>(slab, row, w, x, acc);
  if constexpr (kDw) {
    typename Vec::Scalar sums[4];
    Vec::put4(folded, sums, false);
#pragma GCC unroll 3
    for (int g = 0; g < G; ++g) gradient[g] = add ? gradient[g] + sums[g] : sums[g];
  }
}

template <class Vec, int NV, bool kDx, bool kDw>
inline void columns_tile(const Columns<typename Vec::Scalar>& c, const typename Vec::Scalar* slab,
                         const typename Vec::Scalar* values, typename Vec::Scalar* gradient, i64 sample, i64 samples,
                         i64 begin, i64 end, bool first, bool last) {
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
      if constexpr (Vec::kFolds > 1) {
        constexpr int kFolds = Vec::kFolds;
        for (; k + 4 * kFolds <= stop; k += 4 * kFolds) {
          decltype(column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row, values, x, acc)) folded[kFolds];
#pragma GCC unroll 4
          for (int f = 0; f < kFolds; ++f) {
            const i64 from = k + 4 * f;
            folded[f] = column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row + from, values + from, x, acc);
          }
          if constexpr (kDw) Vec::put(folded, gradient + k, !first);
        }
      }
      for (; k + 4 <= stop; k += 4) {
        const auto folded = column_fold<Vec, NV, 4, kDx, kDw, kChains>(slab, row + k, values + k, x, acc);
        if constexpr (kDw) Vec::put4(folded, gradient + k, !first);
      }
      T* rest = kDw ? gradient + k : nullptr;
      switch (stop - k) {
        case 3: column_rest<Vec, NV, 3, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, !first); break;
        case 2: column_rest<Vec, NV, 2, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, !first); break;
        case 1: column_rest<Vec, NV, 1, kDx, kDw, kChains>(slab, row + k, values + k, x, acc, rest, !first); break;
        default: break;
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

// What one tile of dY gives over a range of columns. `first` writes its part of the gradient, others add theirs; `last`
// finishes the gradient.
template <class T, bool kDx, bool kDw>
void columns_range(const Columns<T>& c, const Tiles& tiles, i64 t, const T* slab, const T* values, T* gradient,
                   i64 begin, i64 end, bool first, bool last) {
  const int width = tiles.width_of(t);
  if (width == 1) return columns_single<T, kDx, kDw>(c, slab, values, begin, end);
  const i64 sample = tiles.begin(t), samples = tiles.samples_of(t);
  with_width(T{}, width, [&]<class Vec, int NV>() {
    columns_tile<Vec, NV, kDx, kDw>(c, slab, values, gradient, sample, samples, begin, end, first, last);
  });
}

// The variant that computes what is wanted; null where that is only the sums for the bias.
template <class T>
auto columns_range_for(const Columns<T>& c) {
  const bool dx = c.dx.data != nullptr, dw = c.gradient != nullptr;
  return dx && dw ? columns_range<T, true, true>
         : dx     ? columns_range<T, true, false>
         : dw     ? columns_range<T, false, true>
                  : nullptr;
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

// Rows of a tile of dY: packed into `slab` unless they lie there, their sums unless those are null, and their scale.
template <class T>
void prepare_rows(const Columns<T>& c, const ColumnsPlan<T>& plan, i64 t, i64 begin, i64 end, T* slab, T* sums) {
  const i64 width = plan.tiles.width_of(t);
  const i64 step = sweep_of(c.dy, c.samples, c.outputs);
  for (i64 i0 = begin; i0 < end; i0 += step) {
    const i64 i1 = smaller(i0 + step, end);
    if (!plan.in_place) pack_tile(c.dy, plan.tiles, t, i0, i1, step, slab);
    if (sums != nullptr) {
      for (i64 i = i0; i < i1; ++i) sums[t * c.outputs + i] = sum_of(slab + i * width, width);
    }
    if (c.row_scale != nullptr) {
      for (i64 i = i0; i < i1; ++i) {
        const T scale = c.row_scale[i];
        for (i64 b = i * width; b < (i + 1) * width; ++b) slab[b] *= scale;
      }
    }
  }
}

// The gradient of a range of columns, from the sums of all groups. Those of the first are there already.
template <class T>
void add_groups(const Columns<T>& c, const ColumnsPlan<T>& plan, const T* gradients, i64 begin, i64 end) {
  for (i64 j0 = begin; j0 < end; j0 += kGrain) {
    const i64 j1 = smaller(j0 + kGrain, end);
    for (int g = 1; g < plan.groups; ++g) {
      const T* sums = gradients + (g - 1) * plan.distance;
      for (i64 k = c.columns.start[j0]; k < c.columns.start[j1]; ++k) c.gradient[k] += sums[k];
    }
    for (i64 j = j0; j < j1; ++j) finish_column(c, j);
  }
}

// Values times the factors of their rows.
template <class T>
void scale_values(const Columns<T>& c, i64 begin, i64 end, T* scaled) {
  const i32* row = c.columns.index;
  for (i64 k = begin; k < end; ++k) scaled[k] = c.values[k] * c.factors.first[row[k]];
  if (c.factors.second != nullptr) {
    for (i64 k = begin; k < end; ++k) scaled[k] *= c.factors.second[row[k]];
  }
}

template <class T>
void columns(const Columns<T>& c) {
  const ColumnsPlan<T> plan = plan_columns(c);
  const Tiles& tiles = plan.tiles;
  std::byte* memory = c.workspace;
  T* slabs = reinterpret_cast<T*>(plan.in_place ? static_cast<std::byte*>(c.dy.data) : memory);
  T* scaled = reinterpret_cast<T*>(memory += plan.slabs);
  T* sums = reinterpret_cast<T*>(memory += plan.values);
  T* gradients = reinterpret_cast<T*>(memory += plan.sums);
  if (c.bias_gradient == nullptr) sums = nullptr;
  const int threads = plan.threads;
  const bool visit = !plan.in_place || sums != nullptr, alone = plan.sharing.alone;

  const i64 pack_parts = parts_per_group(tiles.count(), threads),
            pieces = visit && !alone ? pack_parts * tiles.count() : 0;
  auto prepare = [&](i64 begin, i64 end) {
    if (plan.scaled) {
      scale_values(c, share_begin(c.connections, begin, threads), share_begin(c.connections, end, threads), scaled);
    }
    for (i64 piece = share_begin(pieces, begin, threads); piece < share_begin(pieces, end, threads); ++piece) {
      const i64 t = piece / pack_parts, part = piece % pack_parts;
      prepare_rows(c, plan, t, grain_begin(c.outputs, part, pack_parts), grain_begin(c.outputs, part + 1, pack_parts),
                   slabs + tiles.begin(t) * c.outputs, sums);
    }
  };
  if (pieces > 0 || plan.scaled) in_threads(c.threads, threads, prepare);

  const T* values = plan.scaled ? scaled : c.values;
  const auto range = columns_range_for(c);
  const i64 parts = plan.sharing.parts, items = parts * plan.groups;
  auto compute = [&](i64 begin, i64 end) {
    T* own = alone && !plan.in_place ? slabs + begin * tile_room(tiles, c.outputs) : nullptr;
    const i64 first = share_begin(items, begin, threads);
    for (i64 item = first; item < share_begin(items, end, threads); ++item) {
      const i64 group = item / parts, part = item % parts;
      const i64 from = part_begin(c.columns.start, c.inputs, part, parts);
      const i64 to = part_begin(c.columns.start, c.inputs, part + 1, parts);
      T* gradient = group == 0 ? c.gradient : gradients + (group - 1) * plan.distance;
      const i64 first_tile = group_begin(tiles, group, plan.groups),
                end_tile = group_begin(tiles, group + 1, plan.groups);
      for (i64 t = first_tile; t < end_tile; ++t) {
        T* slab = own != nullptr ? own : slabs + tiles.begin(t) * c.outputs;
        if (alone && visit && plan.sharing.packs(item, first)) {
          prepare_rows(c, plan, t, 0, c.outputs, slab, part == 0 ? sums : nullptr);
        }
        if (range == nullptr) continue;
        range(c, tiles, t, slab, values, gradient, from, to, t == first_tile, plan.groups == 1 && t + 1 == end_tile);
      }
    }
  };
  in_threads(c.threads, threads, compute);

  const bool dw = c.gradient != nullptr;
  if (dw && plan.groups > 1) {
    auto add = [&](i64 begin, i64 end) {
      add_groups(c, plan, gradients, part_begin(c.columns.start, c.inputs, begin, threads),
                 part_begin(c.columns.start, c.inputs, end, threads));
    };
    in_threads(c.threads, threads, add);
  }
  if (tiles.count() == 0) {
    for (i64 k = 0; dw && k < c.connections; ++k) c.gradient[k] = 0;
    for (i64 j = 0; c.dots != nullptr && j < c.inputs; ++j) c.dots[j] = 0;
  }
  for (i64 i = 0; sums != nullptr && i < c.outputs; ++i) {
    T sum = 0;
    for (i64 t = 0; t < tiles.count(); ++t) sum += sums[t * c.outputs + i];
    c.bias_gradient[i] = sum;
  }
}

const Kernels table{forward<float>,           forward<double>,          columns<float>,
                    columns<double>,          forward_workspace<float>, forward_workspace<double>,
                    columns_workspace<float>, columns_workspace<double>};

}  // namespace
