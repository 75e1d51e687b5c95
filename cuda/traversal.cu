// The products of a view with activations: the forward pass over the row view, dX over the column view.
#include "cuda/traversal.cuh"

namespace dendnorm::cuda {
namespace {

// Blocks to a processor, which bounds the registers: to 64, or 80 where wide pieces of 16-bit samples need them.
constexpr int blocks_at_least(bool slab, int lanes, int element) {
  return slab ? 1 : element == 2 && lanes >= 16 ? 3 : 4;
}

template <class A, class T, int kLanes, bool kSlab>
__global__ void __launch_bounds__(warps_of(kSlab) * 32, blocks_at_least(kSlab, kLanes, sizeof(A)))
    product_kernel(const Product<T> p) {
  traverse<A, T, kLanes, kSlab>(p, Nothing{});
}

template <class A, class T, int kLanes, bool kSlab>
cudaError_t launch(const Product<T>& p, cudaStream_t stream) {
  const i64 tiles = divided_up(p.samples, kLanes * Piece<A>::kCount);
  const i64 shared = product_shared_bytes(kSlab, kLanes, sizeof(A), sizeof(T), p.neurons);
  return launch_kernel(product_kernel<A, T, kLanes, kSlab>,
                       traversal_grid(p.segments, p.rows_per_block, tiles, kMaxGridY), dim3(warps_of(kSlab) * 32),
                       static_cast<std::size_t>(shared), stream, p);
}

}  // namespace

template <class T>
cudaError_t launch_product(Product<T> p, const ProductChoice& choice, Type type, cudaStream_t stream) {
  if (p.samples == 0 || p.segments == 0) return cudaSuccess;
  take_choice(p, choice);
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    if (choice.slab) {
      return with_lanes<kMaxSlabLanes>(
          choice.lanes, [&](auto lanes) { return launch<A, T, decltype(lanes)::value, true>(p, stream); });
    }
    return with_lanes<kMaxGatherLanes>(
        choice.lanes, [&](auto lanes) { return launch<A, T, decltype(lanes)::value, false>(p, stream); });
  });
}

template cudaError_t launch_product(Product<float>, const ProductChoice&, Type, cudaStream_t);
template cudaError_t launch_product(Product<double>, const ProductChoice&, Type, cudaStream_t);

}  // namespace dendnorm::cuda
