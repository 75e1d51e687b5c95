// Y = S X for a compressed view S: every segment's sum over its connections of value * activations.
//
// A warp has a row and a tile of samples. `kLanes` lanes share a connection, each with 16 bytes of its neuron's
// samples, so 32 / kLanes connections of the row are in work at once; their sums are added at the row's end. The
// activations come from a packed feature-major matrix through L2 (gather) or from a slab in shared memory, which the
// block fills itself (slab). The results of a round of rows leave through shared memory, in either order of the output.
#pragma once

#include <type_traits>

#include "cuda/choose.h"
#include "cuda/dots.cuh"
#include "cuda/product.h"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

// Neuron n's pieces of a slab are exchanged among themselves by this, so that filling and reading both touch every
// bank of shared memory once.
template <int kLanes>
__device__ __forceinline__ u32 slab_swizzle(u32 n) {
  static_assert(kLanes <= 8, "a neuron of a slab fits the 128 bytes of all banks");
  return n / (8 / kLanes) & (kLanes - 1);
}

// From packed activations, whole pieces at a time; zeros after the last sample.
template <class A, class T, int kLanes>
__device__ __forceinline__ void copy_slab(const Product<T>& p, u32 sample, std::byte* slab, int thread) {
  for (u32 at = thread; at < p.neurons * kLanes; at += kSlabWarps * 32) {
    const u32 n = at / kLanes, piece = at % kLanes, first = sample + piece * Piece<A>::kCount;
    std::byte* to = slab + (n * kLanes + (piece ^ slab_swizzle<kLanes>(n))) * 16;
    if (first < p.samples) {
      copy_ahead(to, p.x + n * p.x_neuron + first * sizeof(A));
    } else {
      *reinterpret_cast<uint4*>(to) = {0, 0, 0, 0};
    }
  }
  wait_for_copies();
}

// From activations of any strides: eight neurons and four samples at a time, whole 32-byte sectors of float32 in, no
// bank twice out. The four loads of each thread that are under way, 16 KB of a block, are as many as L2 wants; eight
// cost registers that the loop lacks then.
template <class A, class T, int kLanes>
__device__ __forceinline__ void fill_slab(const Product<T>& p, u32 sample, std::byte* slab, int warp, int lane) {
  constexpr int kPer = Piece<A>::kCount, kTile = kLanes * kPer;
  for (i64 first = warp * 8; first < p.neurons; first += kSlabWarps * 8) {
    const i64 n = first + lane % 8;
    if (n < p.neurons) {
      const std::byte* from = p.x + n * p.x_neuron + sample * p.x_sample;
      std::byte* to = slab + n * (kLanes * 16);
      const u32 swizzle = slab_swizzle<kLanes>(static_cast<u32>(n));
#pragma unroll 1
      for (int s = 0; s < kTile; s += 16) {
        A got[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int at = s + 4 * q + lane / 8;
          got[q] = at < kTile && sample + at < p.samples ? *reinterpret_cast<const A*>(from + at * p.x_sample) : A{};
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int at = s + 4 * q + lane / 8;
          if (at < kTile) *reinterpret_cast<A*>(to + ((at / kPer ^ swizzle) * 16 + at % kPer * sizeof(A))) = got[q];
        }
      }
    }
  }
}

// Connections as the loop wants them: where the neuron lies (its index, or its place in the slab) and the value.
template <class T, int kLanes, bool kSlab>
__device__ __forceinline__ void stage_connection(const Product<T>& p, u32 k, u32* where, T* value) {
  const u32 index = static_cast<u32>(__ldg(p.view.index + k));
  T v = __ldg(p.values + (p.view.perm != nullptr ? static_cast<u32>(__ldg(p.view.perm + k)) : k));
  if (p.entry_factors != nullptr) {
    const Factor<T> factor = p.entry_factors[index];
    v = v * factor.first * factor.second;
  }
  *value = v;
  if constexpr (kSlab) {
    *where = index * (kLanes * 16) | slab_swizzle<kLanes>(index) * 16;
  } else {
    *where = index;
  }
}

// What a warp's loads serve besides: nothing, or dot products with the lane's samples of the segment.
struct Nothing {};
template <class A, class T>
struct LaneDots {
  T own[Piece<A>::kCount];
  T* parts;
  bool any;    // the lane has samples
  bool first;  // nothing lies in the parts yet
};

// Loads that each lane has in flight. With dot products from a slab fewer: it answers sooner, and registers are scarce.
template <int kLanes, bool kSlab, class Besides>
constexpr int kLoadsAtOnce = kSlab && !std::is_same_v<Besides, Nothing> ? 4 : loads_in_flight(kLanes);

// The lane's part of the sums over the connections [begin, end). `x` is where the lane's samples lie in neuron 0.
template <class A, class T, int kLanes, bool kSlab, class Besides>
__device__ __forceinline__ void sum_connections(const Product<T>& p, u32 begin, u32 end, const std::byte* x,
                                                u32* wheres, T* values, int lane, const Besides& besides,
                                                T (&sum)[Piece<A>::kCount]) {
  constexpr bool kDots = !std::is_same_v<Besides, Nothing>;
  constexpr int kPer = Piece<A>::kCount;
  constexpr int kStage = staged_connections(kLanes), kLoads = kLoadsAtOnce<kLanes, kSlab, Besides>;
  constexpr int kRound = kLoads * (32 / kLanes);
  static_assert(kStage % kRound == 0);
  const int own = lane / kLanes * kLoads;  // the lane's first connection in a round
  const u32 stride = static_cast<u32>(p.x_neuron), place = static_cast<u32>(lane % kLanes) * 16;
#pragma unroll
  for (int i = 0; i < kPer; ++i) sum[i] = 0;

  const auto load = [&](u32 where) {
    if constexpr (kSlab) {
      return load_shared<A>(x + (where ^ place));
    } else {
      return load_global<A>(x + static_cast<std::uint64_t>(where) * stride);
    }
  };
  // Returns the lane's part of the dot product.
  const auto add = [&](T value, const Piece<A>& piece, bool counts) {
    T got[kPer], dot = 0;
    piece.unpack(got);
    if (counts) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) sum[i] = multiply_add(value, got[i], sum[i]);
    }
    if constexpr (kDots) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) dot = multiply_add(got[i], besides.own[i], dot);
    }
    return dot;
  };
  // Of the connections from k on, of which `count` are real: to the parts, whole.
  const auto keep = [&](T(&dots)[kLoads], u32 k, int count) {
    if constexpr (kDots) {
      constexpr int kHeld = held_sums(kLanes, kLoads), kSharing = holding_lanes(kLanes, kLoads);
      const int kept = exchange<kLanes / 2, kLoads>(dots, lane);
      if (lane % kSharing != 0) return;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        T* to = besides.parts + k + kept + i;
        if (kept + i < count) *to = besides.first ? dots[i] : *to + dots[i];
      }
    }
  };

  // kLoads independent loads of 16 bytes, then their multiply-adds. A round that is not full loads as much and adds
  // what there is: 0 * inf is not 0.
  const auto add_round = [&](u32 first, int k, auto full, int count) {
    u32 where[kLoads];
    Piece<A> pieces[kLoads];
    T value[kLoads], dots[kLoads];
    read_run(wheres + k, where);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) pieces[u] = load(where[u]);
    read_run(values + k, value);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      dots[u] = add(value[u], pieces[u], decltype(full)::value || k + u < count);
      if constexpr (kDots) dots[u] = besides.any ? dots[u] : 0;  // what a lane without samples reads may be infinite
    }
    keep(dots, first + k, count - k);
  };

  for (u32 first = begin; first < end; first += kStage) {
    const int count = end - first < kStage ? static_cast<int>(end - first) : kStage;
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kStage; t += 32) {
      // Places after the last connection point where it points: something that may be read.
      const int at = t + lane;
      stage_connection<T, kLanes, kSlab>(p, first + (at < count ? at : count - 1), wheres + at, values + at);
    }
    __syncwarp();
    int k = own;  // the hot loop
#pragma unroll 1
    for (; k - own + kRound <= count; k += kRound) add_round(first, k, std::true_type{}, count);
    if (k - own < count) add_round(first, k, std::false_type{}, count);
  }
#pragma unroll
  for (int step = kLanes; step < 32; step *= 2) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) sum[i] += __shfl_xor_sync(kFullMask, sum[i], step);
  }
}

// Which of the `rows` segments from `base` on are too long for the warps of one, as bits; the same in every warp.
template <class T>
__device__ __forceinline__ u32 long_rows(const Product<T>& p, u32 base, u32 to, int rows, int lane) {
  const u32 own = base + lane;
  u32 count = 0;
  if (lane < rows && own < to) count = static_cast<u32>(__ldg(p.view.start + own + 1) - __ldg(p.view.start + own));
  return __ballot_sync(kFullMask, count > p.long_row);
}

// Writes the results of a round: `rows` segments from `base` on (those below `to` and not among the bits `skipped`),
// each the sum of `split` parts in `results`.
template <class A, class T, int kTile, int kPitch>
__device__ __forceinline__ void write_results(const Product<T>& p, const T* results, u32 base, u32 to, int rows,
                                              u32 skipped, int split, u32 sample, int thread, int threads) {
  const bool feature_major = p.y_sample == static_cast<i64>(sizeof(A));
  const int inner = rows < 8 ? rows : 8;  // rows that are neighbours in a batch-major output, a sector of float32
  for (int e = thread; e < rows * kTile; e += threads) {
    const int r = feature_major ? e / kTile : e % inner + e / inner / kTile * inner;
    const int s = feature_major ? e % kTile : e / inner % kTile;
    const u32 row = base + r;
    if (row >= to || sample + s >= p.samples || (skipped >> r & 1) != 0) continue;
    T value = results[r * split * kPitch + s];
    for (int part = 1; part < split; ++part) value += results[(r * split + part) * kPitch + s];
    if (p.row_factors != nullptr) {
      const Factor<T> factor = p.row_factors[row];
      value = value * factor.first * factor.second;
    }
    if (p.bias != nullptr) value += p.bias[row];
    *reinterpret_cast<A*>(p.y + row * p.y_neuron + static_cast<std::uint64_t>(sample + s) * p.y_sample) =
        write_as<A>(value);
  }
}

// What a block does. `loads` is Nothing, or the SharedLoads of a fused product.
template <class A, class T, int kLanes, bool kSlab, class Loads>
__device__ __forceinline__ void traverse(const Product<T>& p, const Loads& loads) {
  constexpr bool kDots = !std::is_same_v<Loads, Nothing>;
  using Besides = std::conditional_t<kDots, LaneDots<A, T>, Nothing>;
  constexpr int kAllWarps = warps_of(kSlab), kPer = Piece<A>::kCount, kTile = kLanes * kPer;
  constexpr int kStage = staged_connections(kLanes), kPitch = kTile + 16 / static_cast<int>(sizeof(T));
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  std::byte* shared = shared_memory<std::byte>();
  std::byte* slab = shared;
  if (kSlab) shared += p.neurons * (kLanes * 16);
  T* values = reinterpret_cast<T*>(shared) + warp * kStage;
  u32* wheres = reinterpret_cast<u32*>(shared + kAllWarps * kStage * sizeof(T)) + warp * kStage;
  T* results = reinterpret_cast<T*>(shared + kAllWarps * kStage * (sizeof(T) + sizeof(u32)));

  // Rows and connections are counted in 32 bits (there are less than 2^31 of either), and samples in fewer; only
  // products of them with a stride take 64.
  const u32 from = blockIdx.x * p.rows_per_block;
  const u32 to = p.segments - from < p.rows_per_block ? p.segments : from + p.rows_per_block;
  for (u32 tile = blockIdx.y; tile * kTile < p.samples; tile += gridDim.y) {
    const u32 sample = tile * kTile;
    const std::byte* x = slab;
    // A lane beyond the last sample reads what is there, and nobody reads its sums.
    const int own = lane % kLanes * kPer;
    const bool any = sample + own < p.samples;
    const i64 place = any ? (sample + own) * static_cast<i64>(sizeof(A)) : 0;
    if constexpr (kSlab) {
      if (p.packed) {
        copy_slab<A, T, kLanes>(p, sample, slab, thread);
      } else {
        fill_slab<A, T, kLanes>(p, sample, slab, warp, lane);
      }
      __syncthreads();
    } else {
      x = settled(p.x + place);
    }
    const int rows = kAllWarps / p.split;
    for (u32 base = from; base < to; base += rows) {
      // A round of rows: first all that are not long, one for each `split` warps, and then each long one by all warps.
      const u32 longs = long_rows(p, base, to, rows, lane);
      u32 left = longs;
      bool whole = false;
      do {
        const int split = whole ? kAllWarps : p.split;
        const u32 first = whole ? base + __popc((left & (0u - left)) - 1) : base;
        const u32 row = first + warp / split, skipped = whole ? 0 : longs;
        u32 begin = 0, end = 0;
        if (row < to && (skipped >> (row - first) & 1) == 0) {
          begin = __ldg(p.view.start + row);
          end = __ldg(p.view.start + row + 1);
          const u32 part = ((end - begin + split - 1) / split + 31) / 32 * 32;
          begin += warp % split * part;
          if (begin < end && end - begin > part) end = begin + part;
        }
        T sum[kPer];
        Besides besides;
        if constexpr (kDots) {
          besides.parts = loads.parts + static_cast<i64>(blockIdx.y) * loads.connections;
          besides.any = any;
          besides.first = tile == blockIdx.y;
          if (begin < end) load_global<A>(loads.own + row * loads.own_neuron + place).unpack(besides.own);
        }
        sum_connections<A, T, kLanes, kSlab>(p, begin, end, x, wheres, values, lane, besides, sum);
        if (lane < kLanes) {
#pragma unroll
          for (int i = 0; i < kPer; ++i) results[warp * kPitch + lane * kPer + i] = sum[i];
        }
        __syncthreads();
        write_results<A, T, kTile, kPitch>(p, results, first, to, whole ? 1 : rows, skipped, split, sample, thread,
                                           kAllWarps * 32);
        __syncthreads();
        if (whole) left &= left - 1;
        whole = true;
      } while (left != 0);
    }
    if constexpr (kSlab) __syncthreads();
  }
}

// Tiles vary slowest, so that the activations of one stay in L2 while all rows go by.
inline dim3 traversal_grid(std::int64_t segments, std::int64_t rows_per_block, std::int64_t tiles, std::int64_t most) {
  return dim3(static_cast<unsigned>(divided_up(segments, rows_per_block)),
              static_cast<unsigned>(tiles < most ? tiles : most));
}

// How rows are shared.
template <class T>
void take_choice(Product<T>& p, const ProductChoice& choice) {
  p.split = choice.split;
  p.rows_per_block = static_cast<u32>(choice.rows_per_block);
  p.long_row = static_cast<u32>(choice.long_row);
}

}  // namespace
}  // namespace dendnorm::cuda
