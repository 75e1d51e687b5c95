// Around the products: activations packed feature-major in whole 16-byte pieces, factors of the rows, sums over the
// batch, values put in the order of the row view.
#include "cuda/choose.h"
#include "cuda/factors.cuh"
#include "cuda/product.h"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

constexpr int kSide = 32;

// A 32 x 32 tile at a time, read along whichever of samples and neurons lies adjacent and written along the samples.
template <class A>
__device__ void pack(const Packing& p, u32 samples) {
  A* tile = shared_memory<A>();
  const u32 width = static_cast<u32>(p.pitch / sizeof(A));  // samples with their padding
  const u32 across = (width + kSide - 1) / kSide;
  const i64 tiles = static_cast<i64>((p.neurons + kSide - 1) / kSide) * across;
  const int fast = static_cast<int>(threadIdx.x) % kSide, slow = static_cast<int>(threadIdx.x) / kSide;
  const bool along_samples = p.sample <= p.neuron;
  for (i64 t = blockIdx.x; t < tiles; t += gridDim.x) {
    const u32 sample = static_cast<u32>(t % across) * kSide;
    const i64 neuron = t / across * kSide;
    A got[kSide * kSide / kThreads];
#pragma unroll
    for (int i = 0; i < kSide * kSide / kThreads; ++i) {
      const int other = slow + i * (kThreads / kSide);
      const u32 s = sample + (along_samples ? fast : other);
      const i64 n = neuron + (along_samples ? other : fast);
      got[i] = s < samples && n < p.neurons ? *reinterpret_cast<const A*>(p.from + n * p.neuron + s * p.sample) : A{};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSide * kSide / kThreads; ++i) {
      const int other = slow + i * (kThreads / kSide);
      tile[along_samples ? other * (kSide + 1) + fast : fast * (kSide + 1) + other] = got[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSide * kSide / kThreads; ++i) {
      const int other = slow + i * (kThreads / kSide);
      const i64 n = neuron + other;
      const u32 s = sample + fast;
      if (n < p.neurons && s < width) {
        *reinterpret_cast<A*>(p.to + n * p.pitch + static_cast<i64>(s) * sizeof(A)) = tile[other * (kSide + 1) + fast];
      }
    }
  }
}

// A strip of 32 neurons at a time, eight samples of them together.
template <class A, class T>
__device__ void add_samples(const Sums<T>& sums, u32 samples) {
  T* parts = shared_memory<T>();
  const int fast = static_cast<int>(threadIdx.x) % kSide, slow = static_cast<int>(threadIdx.x) / kSide;
  for (i64 strip = blockIdx.x; strip * kSide < sums.neurons; strip += gridDim.x) {
    const i64 n = strip * kSide + fast;
    T sum = 0;
    if (n < sums.neurons) {
      const std::byte* from = sums.from + n * static_cast<i64>(sizeof(A));
      for (u32 s = slow; s < samples; s += kThreads / kSide) {
        sum += read_as<T>(*reinterpret_cast<const A*>(from + s * sums.sample));
      }
    }
    __syncthreads();
    parts[slow * kSide + fast] = sum;
    __syncthreads();
    if (slow == 0 && n < sums.neurons) {
      for (int other = 1; other < kThreads / kSide; ++other) sum += parts[other * kSide + fast];
      sums.to[n] = sum;
    }
  }
}

enum Role { kPackFirst, kPackSecond, kCount, kAdd };

template <class A, class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const Preparation<T> p, u32 roles) {
  const u32 samples = static_cast<u32>(p.samples);
  switch (roles >> 4 * blockIdx.y & 15) {  // of the blocks with this blockIdx.y
    case kPackFirst: pack<A>(p.packings[0], samples); break;
    case kPackSecond: pack<A>(p.packings[1], samples); break;
    case kCount:
      for (i64 row = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; row < p.rows;
           row += static_cast<i64>(gridDim.x) * kThreads) {
        write_counted(p.counted, row);
      }
      break;
    default: add_samples<A>(p.sums, samples);
  }
}

template <class A, class T>
cudaError_t launch_prepare_of(const Preparation<T>& p, cudaStream_t stream) {
  u32 roles = 0, count = 0;
  i64 blocks = 0;
  const auto add = [&](Role role, i64 wanted) {
    if (wanted == 0) return;
    roles |= static_cast<u32>(role) << 4 * count++;
    blocks = wanted > blocks ? wanted : blocks;
  };
  const auto tiles = [](const Packing& packing) {
    if (packing.from == nullptr) return i64{0};
    return divided_up(packing.neurons, kSide) * divided_up(packing.pitch / static_cast<i64>(sizeof(A)), kSide);
  };
  add(kPackFirst, tiles(p.packings[0]));
  add(kPackSecond, tiles(p.packings[1]));
  if (p.counted.start != nullptr) add(kCount, divided_up(p.rows, kThreads));
  if (p.sums.to != nullptr) add(kAdd, divided_up(p.sums.neurons, kSide));
  if (count == 0) return cudaSuccess;
  const std::size_t tile = kSide * (kSide + 1) * sizeof(A), parts = kThreads * sizeof(T);
  return launch_kernel(prepare_kernel<A, T>,
                       dim3(static_cast<unsigned>(blocks < kMaxGridX ? blocks : kMaxGridX), count), dim3(kThreads),
                       tile > parts ? tile : parts, stream, p, roles);
}

// A block for every neuron, so that a few neurons with very many samples keep more than a few warps busy.
template <class A, class T>
__global__ void __launch_bounds__(128) sums_kernel(const std::byte* x, i64 neuron, u32 samples, T* sums) {
  const int thread = static_cast<int>(threadIdx.x);
  T* parts = shared_memory<T>();
  const std::byte* from = x + blockIdx.x * neuron;
  T sum = 0;
  // Samples are padded to whole pieces with zeros, or there are no others.
  for (u32 s = thread * Piece<A>::kCount; s < samples; s += 128 * Piece<A>::kCount) {
    T got[Piece<A>::kCount];
    load_global<A>(from + s * sizeof(A)).unpack(got);
#pragma unroll
    for (int i = 0; i < Piece<A>::kCount; ++i) sum += got[i];
  }
  sum = warp_sum(sum);
  if (thread % 32 == 0) parts[thread / 32] = sum;
  __syncthreads();
  if (thread == 0) sums[blockIdx.x] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) permute_kernel(const T* from, const i32* perm, u32 count, T* to) {
  const u32 k = blockIdx.x * kThreads + threadIdx.x;
  if (k < count) to[k] = __ldg(from + __ldg(perm + k));
}

}  // namespace

template <class T>
cudaError_t launch_prepare(const Preparation<T>& p, Type type, cudaStream_t stream) {
  return with_type<T>(type, [&](auto a) { return launch_prepare_of<decltype(a)>(p, stream); });
}

template <class T>
cudaError_t launch_sums(const std::byte* x, i64 neuron, i64 samples, i64 neurons, Type type, T* sums,
                        cudaStream_t stream) {
  if (neurons == 0) return cudaSuccess;
  return with_type<T>(type, [&](auto a) {
    return launch_kernel(sums_kernel<decltype(a), T>, dim3(static_cast<unsigned>(neurons)), dim3(128), 4 * sizeof(T),
                         stream, x, neuron, static_cast<u32>(samples), sums);
  });
}

template <class T>
cudaError_t launch_permute(const T* from, const i32* perm, i64 count, T* to, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return launch_kernel(permute_kernel<T>, dim3(static_cast<unsigned>(divided_up(count, kThreads))), dim3(kThreads), 0,
                       stream, from, perm, static_cast<u32>(count), to);
}

#define DENDNORM_INSTANTIATE(T)                                                              \
  template cudaError_t launch_prepare(const Preparation<T>&, Type, cudaStream_t);            \
  template cudaError_t launch_sums(const std::byte*, i64, i64, i64, Type, T*, cudaStream_t); \
  template cudaError_t launch_permute(const T*, const i32*, i64, T*, cudaStream_t);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cuda
