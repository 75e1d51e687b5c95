// dX and the gradient of the values in one pass over the columns: what is loaded of dY for a connection is multiplied
// by its value for the one, and with X's samples of its column for the other. The dot products of a tile of samples are
// added to those of the tiles before by the lane that wrote these; of tiles that go on at once every one has its own
// part.
#include "cuda/traversal.cuh"

namespace dendnorm::cuda {
namespace {

// Blocks to a processor, which bounds the registers: to 64 for a slab's, to 80 or 128 else.
constexpr int fused_blocks_at_least(bool slab, int element) { return slab ? 1 : element == 4 ? 3 : 2; }

template <class A, class T, int kLanes, bool kSlab>
__global__ void __launch_bounds__(warps_of(kSlab) * 32, fused_blocks_at_least(kSlab, sizeof(A)))
    fused_kernel(const Product<T> p, const SharedLoads<T> loads) {
  traverse<A, T, kLanes, kSlab>(p, loads);
}

template <class A, class T, int kLanes, bool kSlab>
cudaError_t launch(const Product<T>& p, const SharedLoads<T>& loads, cudaStream_t stream) {
  const i64 tiles = divided_up(p.samples, kLanes * Piece<A>::kCount);
  const i64 shared = product_shared_bytes(kSlab, kLanes, sizeof(A), sizeof(T), p.neurons);
  return launch_kernel(fused_kernel<A, T, kLanes, kSlab>,
                       traversal_grid(p.segments, p.rows_per_block, tiles, kMostParts), dim3(warps_of(kSlab) * 32),
                       static_cast<std::size_t>(shared), stream, p, loads);
}

}  // namespace

template <class T>
cudaError_t launch_fused(Product<T> p, const SharedLoads<T>& loads, const ProductChoice& choice, Type type,
                         cudaStream_t stream) {
  if (p.samples == 0 || p.segments == 0) return cudaSuccess;
  take_choice(p, choice);
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    const auto start = [&](auto lanes, auto slab) {
      return launch<A, T, decltype(lanes)::value, decltype(slab)::value>(p, loads, stream);
    };
    if (choice.slab) {
      return with_lanes<kMaxSlabLanes, kMinFusedSlabLanes>(choice.lanes,
                                                           [&](auto lanes) { return start(lanes, std::true_type{}); });
    }
    return with_lanes<kMaxGatherLanes, kMinFusedGatherLanes>(
        choice.lanes, [&](auto lanes) { return start(lanes, std::false_type{}); });
  });
}

template cudaError_t launch_fused(Product<float>, const SharedLoads<float>&, const ProductChoice&, Type, cudaStream_t);
template cudaError_t launch_fused(Product<double>, const SharedLoads<double>&, const ProductChoice&, Type,
                                  cudaStream_t);

}  // namespace dendnorm::cuda
