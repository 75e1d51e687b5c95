// Which connections go: the k smallest scores.
#include "core/rewire.h"
#include "cuda/ranks.cuh"
#include "cuda/rewire.h"

namespace dendnorm::cuda {
namespace {

constexpr int kDigit = 11, kBins = 1 << kDigit;
constexpr i64 kMaxBlocks = 1024;

template <class T>
constexpr int kPasses = (8 * sizeof(T) + kDigit - 1) / kDigit;

// The digit of a pass: the bits [shift, top) of an order, from the leading ones on.
template <class T>
struct Digit {
  static constexpr int kWidth = 8 * sizeof(T);
  int shift, top;
  __device__ explicit Digit(int pass)
      : shift(kWidth > kDigit * (pass + 1) ? kWidth - kDigit * (pass + 1) : 0), top(kWidth - kDigit * pass) {}
  __device__ u32 of(OrderOf<T> order) const { return static_cast<u32>(order >> shift) & ((1u << (top - shift)) - 1); }
  // Whether the bits above are those of `threshold`.
  __device__ bool may_be(OrderOf<T> order, OrderOf<T> threshold) const {
    return top == kWidth || order >> top == threshold >> top;
  }
};

template <class T>
struct Selecting {
  Workspace workspace;
  u64* nan;                 // urgency of the first NaN
  u32* histogram;           // one for each pass
  Selection<T>* selection;  // what is known before each pass
  u32* counts;

  explicit Selecting(std::byte* base) : workspace(base) {
    nan = workspace.take<u64>(1);
    histogram = workspace.take<u32>(kPasses<T> * kBins);
    zeroed = workspace.bytes();
    selection = workspace.take<Selection<T>>(kPasses<T> + 1);
    counts = workspace.take<u32>(kMaxTiles);
  }
  std::size_t zeroed;
};

// What the histogram of a pass tells, by the whole block: the digit of the ties-th smallest of those that may be it.
template <class T>
__device__ Selection<T> narrow(const Selection<T>& known, const u32* histogram, int pass, u32* shared) {
  constexpr int kEach = kBins / kThreads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  u32 sum = 0;
#pragma unroll
  for (int b = 0; b < kEach; ++b) sum += histogram[thread * kEach + b];
  u32 before = sum;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const u32 other = __shfl_sync(kFullMask, before, lane >= by ? lane - by : lane);
    if (lane >= by) before += other;
  }
  if (lane == 31) shared[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += shared[w];
  before -= sum;
  // One thread finds it among its bins: ties >= 1.
  if (before < known.ties && known.ties <= static_cast<i64>(before) + sum) {
    u32 bin = static_cast<u32>(thread) * kEach;
    while (known.ties > static_cast<i64>(before) + histogram[bin]) before += histogram[bin++];
    shared[kWarps] = bin;
    shared[kWarps + 1] = before;
  }
  __syncthreads();
  const Selection<T> found{known.threshold | static_cast<OrderOf<T>>(shared[kWarps]) << Digit<T>(pass).shift,
                           known.ties - shared[kWarps + 1]};
  __syncthreads();
  return found;
}

// The selection before a pass, by every block for itself; the first one keeps it for the next launch.
template <class T>
__device__ Selection<T> selection_before(int pass, i64 k, const u32* histogram, Selection<T>* selection, u32* shared) {
  Selection<T> known{0, k};
  if (pass > 0) known = narrow<T>(selection[pass - 1], histogram + (pass - 1) * kBins, pass - 1, shared);
  if (blockIdx.x == 0 && threadIdx.x == 0) selection[pass] = known;
  return known;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const T* score, i64 n, i64 k, int pass, u32* histogram, Selection<T>* selection, u64* nan) {
  u32 *bins = shared_memory<u32>(), *shared = bins + kBins;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) bins[b] = 0;
  const Selection<T> known = selection_before<T>(pass, k, histogram, selection, shared);
  __syncthreads();
  const Digit<T> digit(pass);
  u64 fault = 0;
  for (i64 i = thread_number(); i < n; i += static_cast<i64>(gridDim.x) * kThreads) {
    const T value = score[i];
    if (pass == 0 && fault == 0 && is_nan(value)) fault = urgency(Fault::kNan, i);
    const OrderOf<T> order = order_of(value);
    if (digit.may_be(order, known.threshold)) atomicAdd(bins + digit.of(order), 1u);
  }
  if (fault != 0) atomicMax(nan, fault);
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) {
    if (bins[b] != 0) atomicAdd(histogram + pass * kBins + b, bins[b]);
  }
}
constexpr std::size_t kHistogramShared = (kBins + kWarps + 2) * sizeof(u32);

template <class T>
struct IsTie {
  const T* score;
  OrderOf<T> threshold;
  __device__ bool operator()(i64 i) const { return order_of(score[i]) == threshold; }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    ties_kernel(const T* score, i64 n, i64 tile, const u32* histogram, Selection<T>* selection, u32* counts) {
  u32* shared = shared_memory<u32>();
  const Selection<T> found = selection_before<T>(kPasses<T>, 0, histogram, selection, shared);
  count_tile(IsTie<T>{score, found.threshold}, n, tile, counts, shared);
}

template <class T>
__global__ void __launch_bounds__(kThreads) mark_kernel(const T* score, i64 n, i64 tile, const u32* counts,
                                                        const Selection<T>* selection, std::uint8_t* chosen) {
  const Selection<T> found = selection[kPasses<T>];
  rank_tile(IsTie<T>{score, found.threshold}, n, tile, counts, shared_memory<u32>(), [&](i64 i, bool tie, u32 rank) {
    chosen[i] = tie ? rank < found.ties : order_of(score[i]) < found.threshold;
  });
}

__global__ void __launch_bounds__(32) note_nan_kernel(const u64* nan, Status* status) {
  if (threadIdx.x == 0 && *nan != 0) note(status, *nan, 0, 0, 0);
}

}  // namespace

template <class T>
std::size_t weakest_workspace(i64) {
  return Selecting<T>(nullptr).workspace.bytes();
}

template <class T>
cudaError_t weakest(const T* score, i64 n, i64 k, std::uint8_t* chosen, Status* status, std::byte* workspace,
                    cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const Selecting<T> memory(workspace);
  const i64 wanted = (n + 8 * kThreads - 1) / (8 * kThreads);
  const dim3 grid(static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks)), block(kThreads);
  DENDNORM_CUDA_TRY(cudaMemsetAsync(workspace, 0, memory.zeroed, stream));
  for (int pass = 0; pass < (k > 0 ? kPasses<T> : 1); ++pass) {
    DENDNORM_CUDA_TRY(launch_kernel(histogram_kernel<T>, grid, block, kHistogramShared, stream, score, n, k, pass,
                                    memory.histogram, memory.selection, memory.nan));
  }
  DENDNORM_CUDA_TRY(launch_kernel(note_nan_kernel, dim3(1), dim3(32), 0, stream, memory.nan, status));
  if (k == 0) return cudaMemsetAsync(chosen, 0, static_cast<std::size_t>(n), stream);
  const Tiles tiles = tiles_of(n);
  DENDNORM_CUDA_TRY(launch_kernel(ties_kernel<T>, dim3(tiles.count), block, kRankShared, stream, score, n, tiles.size,
                                  static_cast<const u32*>(memory.histogram), memory.selection, memory.counts));
  return launch_kernel(mark_kernel<T>, dim3(tiles.count), block, kRankShared, stream, score, n, tiles.size,
                       static_cast<const u32*>(memory.counts), static_cast<const Selection<T>*>(memory.selection),
                       chosen);
}

#define DENDNORM_INSTANTIATE(T)                   \
  template std::size_t weakest_workspace<T>(i64); \
  template cudaError_t weakest(const T*, i64, i64, std::uint8_t*, Status*, std::byte*, cudaStream_t);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cuda
