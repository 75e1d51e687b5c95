// Products whose activations come from L2.
#include "cuda/product.cuh"

namespace dendnorm::cuda {
namespace {

template <class A, class T, int kLanes>
cudaError_t launch(const Product<T>& p, cudaStream_t stream) {
  const i64 tiles = divided_up(p.samples, kLanes * Piece<A>::kCount);
  // Tiles vary slowest, so that the activations of one stay in L2 while all rows go by.
  const dim3 grid(static_cast<unsigned>(divided_up(p.segments, p.rows_per_block)),
                  static_cast<unsigned>(tiles < kMaxGridY ? tiles : kMaxGridY));
  const i64 shared = product_shared_bytes(false, kLanes, sizeof(A), sizeof(T), p.neurons);
  return launch_kernel(product_kernel<A, T, kLanes, false>, grid, dim3(kGatherWarps * 32),
                       static_cast<std::size_t>(shared), stream, p);
}

}  // namespace

template <class T>
cudaError_t launch_gather(const Product<T>& p, Type type, int lanes, cudaStream_t stream) {
  if (p.samples == 0 || p.segments == 0) return cudaSuccess;
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    switch (lanes) {
      case 1: return launch<A, T, 1>(p, stream);
      case 2: return launch<A, T, 2>(p, stream);
      case 4: return launch<A, T, 4>(p, stream);
      case 8: return launch<A, T, 8>(p, stream);
      case 16: return launch<A, T, 16>(p, stream);
      default: return launch<A, T, 32>(p, stream);
    }
  });
}

template cudaError_t launch_gather(const Product<float>&, Type, int, cudaStream_t);
template cudaError_t launch_gather(const Product<double>&, Type, int, cudaStream_t);

}  // namespace dendnorm::cuda
