// Products whose activations lie in shared memory.
#include "cuda/product.cuh"

namespace dendnorm::cuda {
namespace {

template <class A, class T, int kLanes>
cudaError_t launch(const Product<T>& p, cudaStream_t stream) {
  const i64 tiles = divided_up(p.samples, kLanes * Piece<A>::kCount);
  const dim3 grid(static_cast<unsigned>(divided_up(p.segments, p.rows_per_block)),
                  static_cast<unsigned>(tiles < kMaxGridY ? tiles : kMaxGridY));
  const i64 shared = product_shared_bytes(true, kLanes, sizeof(A), sizeof(T), p.neurons);
  return launch_kernel(product_kernel<A, T, kLanes, true>, grid, dim3(kSlabWarps * 32),
                       static_cast<std::size_t>(shared), stream, p);
}

}  // namespace

template <class T>
cudaError_t launch_slab(const Product<T>& p, Type type, int lanes, cudaStream_t stream) {
  if (p.samples == 0 || p.segments == 0) return cudaSuccess;
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    switch (lanes) {
      case 1: return launch<A, T, 1>(p, stream);
      case 2: return launch<A, T, 2>(p, stream);
      case 4: return launch<A, T, 4>(p, stream);
      default: return launch<A, T, 8>(p, stream);
    }
  });
}

template cudaError_t launch_slab(const Product<float>&, Type, int, cudaStream_t);
template cudaError_t launch_slab(const Product<double>&, Type, int, cudaStream_t);

}  // namespace dendnorm::cuda
