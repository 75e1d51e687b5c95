// Around the products: activations packed feature-major in whole 16-byte pieces, sums over the batch, values put in the
// order of the row view.
#include "cuda/choose.h"
#include "cuda/product.h"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

constexpr int kSide = 32, kThreads = 256;

// Element types by their size: packing only moves bits.
template <class E>
__device__ __forceinline__ E load_element(const std::byte* at) {
  return *reinterpret_cast<const E*>(at);
}

// A 32 x 32 tile at a time, read along whichever of samples and neurons lies adjacent and written along the samples.
template <class E>
__device__ void pack(const Packing& p, u32 samples) {
  E* tile = shared_memory<E>();
  const u32 width = static_cast<u32>(p.pitch / sizeof(E));  // samples with their padding
  const u32 across = (width + kSide - 1) / kSide;
  const i64 tiles = static_cast<i64>((p.neurons + kSide - 1) / kSide) * across;
  const int fast = static_cast<int>(threadIdx.x) % kSide, slow = static_cast<int>(threadIdx.x) / kSide;
  const bool along_samples = p.sample <= p.neuron;
  for (i64 t = blockIdx.x; t < tiles; t += gridDim.x) {
    const u32 sample = static_cast<u32>(t % across) * kSide;
    const i64 neuron = t / across * kSide;
    E got[kSide * kSide / kThreads];
#pragma unroll
    for (int i = 0; i < kSide * kSide / kThreads; ++i) {
      const int other = slow + i * (kThreads / kSide);
      const u32 s = sample + (along_samples ? fast : other);
      const i64 n = neuron + (along_samples ? other : fast);
      got[i] = s < samples && n < p.neurons ? load_element<E>(p.from + n * p.neuron + s * p.sample) : E{};
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
        *reinterpret_cast<E*>(p.to + n * p.pitch + static_cast<i64>(s) * sizeof(E)) = tile[other * (kSide + 1) + fast];
      }
    }
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads) pack_kernel(const Packing first, const Packing second, u32 samples) {
  if (blockIdx.y == 0) {
    pack<E>(first, samples);
  } else {
    pack<E>(second, samples);
  }
}

template <class E>
cudaError_t launch_pack_of(const Packing& first, const Packing& second, i64 samples, cudaStream_t stream) {
  const Packing& one = first.from != nullptr ? first : second;
  const bool both = first.from != nullptr && second.from != nullptr;
  const auto tiles = [](const Packing& p) {
    return divided_up(p.neurons, kSide) * divided_up(p.pitch / static_cast<i64>(sizeof(E)), kSide);
  };
  const i64 most = both && tiles(second) > tiles(one) ? tiles(second) : tiles(one);
  if (one.from == nullptr || most == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(most < kMaxGridX ? most : kMaxGridX), both ? 2 : 1);
  return launch_kernel(pack_kernel<E>, grid, dim3(kThreads), kSide * (kSide + 1) * sizeof(E), stream, one, second,
                       static_cast<u32>(samples));
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

cudaError_t launch_pack(const Packing& first, const Packing& second, i64 samples, int element, cudaStream_t stream) {
  switch (element) {
    case 2: return launch_pack_of<std::uint16_t>(first, second, samples, stream);
    case 4: return launch_pack_of<std::uint32_t>(first, second, samples, stream);
    default: return launch_pack_of<std::uint64_t>(first, second, samples, stream);
  }
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
  template cudaError_t launch_sums(const std::byte*, i64, i64, i64, Type, T*, cudaStream_t); \
  template cudaError_t launch_permute(const T*, const i32*, i64, T*, cudaStream_t);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cuda
