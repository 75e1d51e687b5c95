// G_k = sum over the samples of dY[., row_k] X[., col_k]: the gradient of the values, over the column view.
//
// A warp has a run of connections, whatever columns they lie in, so the work of every warp is alike. `kLanes` lanes
// share a connection, each with 16 bytes of the samples; every lane keeps the partial sums of `kOwn` connections in
// registers through all tiles of samples. X's piece is loaded once for a block of connections in one column. At the end
// the lanes that share exchange halves of their sums until each has whole ones.
#include "cuda/choose.h"
#include "cuda/dots.cuh"
#include "cuda/product.h"
#include "cuda/segments.cuh"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

DENDNORM_HD constexpr int own_connections(int lanes) { return lanes >= 16 ? 16 : lanes == 8 ? 8 : 4; }

// Connections of a lane whose loads are in flight together, as many as registers allow.
DENDNORM_HD constexpr int block_connections(int lanes, int element) {
  return own_connections(lanes) < 8 || element == 8 ? 4 : 8;
}

// Where column changes lie for block `b` of every lane, as bits of the run modulo 32.
DENDNORM_HD constexpr u32 block_mask(int own, int block, int b) {
  u32 mask = 0;
  for (int i = 0; i < 32; ++i) {
    if (i % own / block == b && i % block != 0) mask |= u32{1} << i;
  }
  return mask;
}

// A block of connections of one column: X's piece is loaded once.
template <class A, class T, int kBlock>
__device__ __forceinline__ void add_block(const std::byte* dy, u32 dy_stride, const std::byte* x, u32 x_stride,
                                          const u32* rows, u32 column, T* sum) {
  u32 row[kBlock];
  Piece<A> pieces[kBlock];
  const Piece<A> other = load_global<A>(x + static_cast<std::uint64_t>(column) * x_stride);
  read_run(rows, row);
#pragma unroll
  for (int u = 0; u < kBlock; ++u) pieces[u] = load_global<A>(dy + static_cast<std::uint64_t>(row[u]) * dy_stride);
#pragma unroll
  for (int u = 0; u < kBlock; ++u) sum[u] = dot(pieces[u], other, sum[u]);
}

// Four connections of any columns.
template <class A, class T>
__device__ __forceinline__ void add_mixed(const std::byte* dy, u32 dy_stride, const std::byte* x, u32 x_stride,
                                          const u32* rows, const u32* columns, T* sum) {
  u32 row[4], column[4];
  Piece<A> pieces[4], others[4];
  read_run(rows, row);
  read_run(columns, column);
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    pieces[u] = load_global<A>(dy + static_cast<std::uint64_t>(row[u]) * dy_stride);
    others[u] = load_global<A>(x + static_cast<std::uint64_t>(column[u]) * x_stride);
  }
#pragma unroll
  for (int u = 0; u < 4; ++u) sum[u] = dot(pieces[u], others[u], sum[u]);
}

// What is left of a connection when its sum is whole; returns its part of the dot product.
template <class T>
__device__ __forceinline__ double finish(const Sampled<T>& s, u32 k, u32 row, T g) {
  double part = 0;
  if (s.dot_weights != nullptr) part = s.dot_weights[row] * (static_cast<double>(g) * s.values[k]);
  if (s.finish != nullptr) {
    const Factor<T> factor = s.finish[row];
    g = g * factor.first * factor.second;
  }
  s.gradient[k] = g;
  return part;
}

template <class A, class T, int kLanes>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : 3) sampled_kernel(const Sampled<T> s) {
  constexpr int kPer = Piece<A>::kCount, kTile = kLanes * kPer, kAtOnce = 32 / kLanes;
  constexpr int kOwn = own_connections(kLanes), kRun = kOwn * kAtOnce;
  constexpr int kBlock = block_connections(kLanes, sizeof(A));
  constexpr int kHeld = held_sums(kLanes, kOwn), kSharing = holding_lanes(kLanes, kOwn);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  u32* rows = shared_memory<u32>() + warp * 2 * kRun;
  u32* columns = rows + kRun;
  double* parts = reinterpret_cast<double*>(shared_memory<u32>() + kWarps * 2 * kRun);

  const u32 first = (blockIdx.x * kWarps + warp) * kRun;
  double part = 0;
  if (first < s.connections) {
    u32 changes = 0;  // of the column, from the connection before
#pragma unroll
    for (int t = 0; t < kRun; t += 32) {
      // Places after the last connection repeat it: something that may be read.
      const int at = t + lane;
      const u32 k = first + at < s.connections ? first + at : s.connections - 1;
      const u32 column = segment_of(s.view.start, s.segments, k);
      if (at < kRun) {
        rows[at] = static_cast<u32>(__ldg(s.view.index + k));
        columns[at] = column;
      }
      const u32 before = __shfl_sync(kFullMask, column, lane > 0 ? lane - 1 : 0);
      changes |= __ballot_sync(kFullMask, at < kRun && column != before);
    }
    T sum[kOwn];
#pragma unroll
    for (int q = 0; q < kOwn; ++q) sum[q] = 0;
    const int group = lane / kLanes, own = lane % kLanes * kPer;
    const std::byte *dy = settled(s.dy + own * sizeof(A)), *x = settled(s.x + own * sizeof(A));
    const u32 dy_stride = static_cast<u32>(s.dy_neuron), x_stride = static_cast<u32>(s.x_neuron);
    const u32 *own_rows = rows + group * kOwn, *own_columns = columns + group * kOwn;
    // The hot loop: tiles of samples. Only the last has lanes without any.
    for (u32 tile = 0; tile < s.samples; tile += kTile, dy += kTile * sizeof(A), x += kTile * sizeof(A)) {
      __syncwarp();
      if (tile + own >= s.samples) continue;
#pragma unroll
      for (int q = 0; q < kOwn; q += kBlock) {
        if ((changes & block_mask(kOwn, kBlock, q / kBlock)) == 0) {
          add_block<A, T, kBlock>(dy, dy_stride, x, x_stride, own_rows + q, own_columns[q], sum + q);
          continue;
        }
#pragma unroll
        for (int r = q; r < q + kBlock; r += 4) {
          if ((changes & block_mask(kOwn, 4, r / 4)) == 0) {
            add_block<A, T, 4>(dy, dy_stride, x, x_stride, own_rows + r, own_columns[r], sum + r);
          } else {
            add_mixed<A, T>(dy, dy_stride, x, x_stride, own_rows + r, own_columns + r, sum + r);
          }
        }
      }
    }
    __syncwarp();
    const int kept = group * kOwn + exchange<kLanes / 2, kOwn>(sum, lane);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const u32 k = first + kept + i;
      if (k < s.connections && lane % kSharing == 0) part += finish(s, k, rows[kept + i], sum[i]);
    }
  }
  if (s.dot_weights == nullptr) return;
  // The parts of a block, lane by lane and warp by warp, in an order that shapes alone decide.
  part = warp_sum(part);
  if (lane == 0) parts[warp] = part;
  __syncthreads();
  constexpr int kParts = kWarps * kRun / static_cast<int>(kDotPart);  // of kDotPart connections; the first has the sum
  const i64 last = dot_part_count(s.connections), at = static_cast<i64>(blockIdx.x) * kParts + thread;
  if (thread < kParts && at < last) {
    double total = 0;
    if (thread == 0) {
      for (int w = 0; w < kWarps; ++w) total += parts[w];
    }
    s.dots[at] = total;
  }
}

// G as it lies there: of every position, or in parts that are added up in order. A thread has a connection, and a block
// a part of the dot product.
template <class T, bool kDense>
__global__ void __launch_bounds__(kDotPart) found_kernel(const Sampled<T> s, const T* from, i64 outputs, u32 parts) {
  double* sums = shared_memory<double>();
  const int thread = static_cast<int>(threadIdx.x);
  const u32 k = blockIdx.x * static_cast<u32>(kDotPart) + threadIdx.x;
  double part = 0;
  if (k < s.connections) {
    const u32 row = static_cast<u32>(__ldg(s.view.index + k));
    T g;
    if constexpr (kDense) {
      g = __ldg(from + static_cast<i64>(segment_of(s.view.start, s.segments, k)) * outputs + row);
    } else {
      g = __ldg(from + k);
      for (u32 t = 1; t < parts; ++t) g += __ldg(from + static_cast<i64>(t) * s.connections + k);
    }
    part = finish(s, k, row, g);
  }
  if (s.dot_weights == nullptr) return;
  part = warp_sum(part);
  if (thread % 32 == 0) sums[thread / 32] = part;
  __syncthreads();
  if (thread == 0) s.dots[blockIdx.x] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class A, class T, int kLanes>
cudaError_t launch(const Sampled<T>& s, cudaStream_t stream) {
  constexpr int kRun = own_connections(kLanes) * (32 / kLanes);
  const dim3 grid(static_cast<unsigned>(divided_up(s.connections, kWarps * kRun)));
  return launch_kernel(sampled_kernel<A, T, kLanes>, grid, dim3(kThreads),
                       kWarps * (2 * kRun * sizeof(u32) + sizeof(double)), stream, s);
}

template <class T, bool kDense>
cudaError_t launch_found(const Sampled<T>& s, const T* from, i64 outputs, u32 parts, cudaStream_t stream) {
  static_assert(kDotPart == 4 * 32);
  if (s.connections == 0) return cudaSuccess;
  return launch_kernel(found_kernel<T, kDense>, dim3(static_cast<unsigned>(dot_part_count(s.connections))),
                       dim3(kDotPart), 4 * sizeof(double), stream, s, from, outputs, parts);
}

}  // namespace

template <class T>
cudaError_t launch_sampled(const Sampled<T>& s, Type type, cudaStream_t stream) {
  if (s.connections == 0) return cudaSuccess;
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    return with_lanes<kMaxGatherLanes>(covering_lanes(s.samples, sizeof(A), kMaxGatherLanes),
                                       [&](auto lanes) { return launch<A, T, decltype(lanes)::value>(s, stream); });
  });
}

template <class T>
cudaError_t launch_gathered(const Sampled<T>& s, const T* dense, i64 outputs, cudaStream_t stream) {
  return launch_found<T, true>(s, dense, outputs, 0, stream);
}

template <class T>
cudaError_t launch_added(const Sampled<T>& s, const T* parts, u32 count, cudaStream_t stream) {
  return launch_found<T, false>(s, parts, 0, count, stream);
}

template cudaError_t launch_sampled(const Sampled<float>&, Type, cudaStream_t);
template cudaError_t launch_sampled(const Sampled<double>&, Type, cudaStream_t);
template cudaError_t launch_gathered(const Sampled<float>&, const float*, i64, cudaStream_t);
template cudaError_t launch_gathered(const Sampled<double>&, const double*, i64, cudaStream_t);
template cudaError_t launch_added(const Sampled<float>&, const float*, u32, cudaStream_t);
template cudaError_t launch_added(const Sampled<double>&, const double*, u32, cudaStream_t);

}  // namespace dendnorm::cuda
