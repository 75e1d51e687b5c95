// What the kernels of the products (traversal.cu, sampled.cu) are told, and how they are started.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/platform.h"
#include "cuda/choose.h"
#include "cuda/kernels.h"

namespace dendnorm::cuda {

// y = S x + bias for a compressed view S with `segments` rows.
template <class T>
struct Product {
  std::uint32_t samples, segments, neurons;  // `neurons` of x
  const std::byte* x;
  std::int64_t x_neuron, x_sample;  // bytes from one neuron, and from one sample, to the next
  bool packed;                      // x is, see launch_product; gathering reads no other
  View view;
  const T* values;
  const Factor<T>* entry_factors;  // by index, null: 1
  const Factor<T>* row_factors;    // by segment, null: 1
  const T* bias;                   // by segment, null: 0
  std::byte* y;
  std::int64_t y_neuron, y_sample;  // bytes
  int split;                        // as ProductChoice has them
  std::uint32_t rows_per_block, long_row;
};

// Packed is: 16-byte aligned, x_sample is one element, x_neuron a multiple of 16, and whole 16-byte pieces of samples.
// What is gathered must be; a slab takes x of any strides. How rows are shared is taken from the choice.
template <class T>
cudaError_t launch_product(Product<T> product, const ProductChoice& choice, Type type, cudaStream_t stream);

// What a product can make of the activations that it loads: for every connection k their dot product with those of its
// segment, in parts[t * connections + k] for parts t of the tiles of samples.
template <class T>
struct SharedLoads {
  const std::byte* own;     // packed activations of the segments
  std::int64_t own_neuron;  // bytes
  std::uint32_t connections;
  T* parts;
};

// Both at once; the choice is one for shapes with `gradient`. What is multiplied is packed.
template <class T>
cudaError_t launch_fused(Product<T> product, const SharedLoads<T>& shared, const ProductChoice& choice, Type type,
                         cudaStream_t stream);

// G_k = sum over the samples of dy[., index_k] x[., segment of k], both packed.
template <class T>
struct Sampled {
  std::uint32_t samples, segments, connections;
  const std::byte *dy, *x;
  std::int64_t dy_neuron, x_neuron;  // bytes
  View view;
  const T* values;            // read with dot_weights
  const Factor<T>* finish;    // by index: G is multiplied by it; null: not
  const double* dot_weights;  // by index, null: not wanted
  double* dots;               // one part for every kDotPart connections
  T* gradient;
};

constexpr std::int64_t kDotPart = 128;
DENDNORM_HD constexpr std::int64_t dot_part_count(std::int64_t connections) {
  return (connections + kDotPart - 1) / kDotPart;
}

template <class T>
cudaError_t launch_sampled(const Sampled<T>& sampled, Type type, cudaStream_t stream);

// The same from G of every position, dense[segment * outputs + index]; dy and x are not read.
template <class T>
cudaError_t launch_gathered(const Sampled<T>& sampled, const T* dense, std::int64_t outputs, cudaStream_t stream);

// The same from the sums of `count` parts, parts[t * connections + k].
template <class T>
cudaError_t launch_added(const Sampled<T>& sampled, const T* parts, std::uint32_t count, cudaStream_t stream);

// Copies a (samples, neurons) matrix of any strides to `to`, feature-major with `pitch` bytes between neurons, and
// zeros after the last sample.
struct Packing {
  const std::byte* from = nullptr;      // null: nothing to do
  std::int64_t neuron = 0, sample = 0;  // bytes
  std::int64_t neurons = 0;
  std::byte* to = nullptr;
  std::int64_t pitch = 0;
};

// Sums over the batch, straight from a batch-major matrix.
template <class T>
struct Sums {
  const std::byte* from = nullptr;
  std::int64_t sample = 0;  // bytes
  std::int64_t neurons = 0;
  T* to = nullptr;  // null: nothing to do
};

// All that the other kernels of a pass read, in one launch.
template <class T>
struct Preparation {
  std::int64_t samples;
  Packing packings[2];
  Counted<T> counted;
  std::int64_t rows;
  Sums<T> sums;
};

// Up to this many samples a block can add them up on the way; more are left to launch_sums.
constexpr std::int64_t kFewSamples = 1024;

template <class T>
cudaError_t launch_prepare(const Preparation<T>& preparation, Type type, cudaStream_t stream);

// sums[n] = sum of the samples of neuron n, packed.
template <class T>
cudaError_t launch_sums(const std::byte* x, std::int64_t neuron, std::int64_t samples, std::int64_t neurons, Type type,
                        T* sums, cudaStream_t stream);

// to[k] = from[perm[k]]
template <class T>
cudaError_t launch_permute(const T* from, const std::int32_t* perm, std::int64_t count, T* to, cudaStream_t stream);

}  // namespace dendnorm::cuda
