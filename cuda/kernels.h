// The products of a sparse layer and its normalisation on a GPU: pointers to device memory, sizes and a stream, no
// Torch. Notation and meaning are those of csrc/cpu/kernels.h and csrc/cpu/norm.h; the values v of a layer lie in the
// order of its column view (grouped by input).
//
// Every function only launches kernels on the stream, and returns the first error of a launch. Nothing waits for the
// device and nothing is read back, so all can be captured in a graph; and what is launched depends on sizes alone,
// never on the pattern, so a captured graph stays right when the pattern is rewritten in place. No floating-point
// atomics: one writer for each result and fixed orders of summation, so the same bits every time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layer.h"
#include "core/norm.h"
#include "cuda/device.h"
#include "cuda/runtime.h"

namespace dendnorm::cuda {

// What a row's sum is multiplied by, first * second; second is 1 unless one float32 cannot hold the factor.
template <class T>
struct alignas(2 * sizeof(T)) Factor {
  T first, second;
};

// Where b = 0 the numbers of connections tell all factors: then a pass works them out in its first launch, instead of
// row_factors in one of its own, and reads them as its factors and dot weights.
template <class T>
struct Counted {
  const std::int32_t* start = nullptr;  // of the row view, (M + 1,); null: nothing to work out
  Excitability<T> excitability;
  double a = 0;
  Factor<T>* factors = nullptr;  // (M,) e / n^a, null: not wanted
  double* inverse_d = nullptr;   // (M,) 1 / n^a, null: not wanted
};

// What the choice of a kernel needs to know of the current device.
cudaError_t current_device(Device* device);

constexpr std::int64_t kMaxSamples = std::int64_t{1} << 28;

// Y = X W^T + bias over the row view. T is float or double; activations are of T's type, or have 16 bits with float.
template <class T>
struct Forward {
  std::int64_t samples, inputs, outputs, connections;
  Activations x, y;
  View rows;
  const T* values;
  const Factor<T>* factors;  // (M,), null: 1
  const T* bias;             // (M,), null: none
  Counted<T> counted;
  std::byte* workspace;  // forward_workspace bytes, aligned to 256; its contents are of no importance
};

// Over the column view: dX = dY W, G_k = sum over the batch of dY[., row_k] X[., col_k], and db.
template <class T>
struct Columns {
  std::int64_t samples, inputs, outputs, connections;
  Activations dy;
  Activations x;   // read where `gradient` is wanted, unless it is taken from dense_gradient
  Activations dx;  // data null: not wanted
  View columns;
  const T* values;            // read where dx or dots is wanted
  const Factor<T>* factors;   // (M,), null: 1
  T* gradient;                // (nnz,), null: not wanted
  const T* dense_gradient;    // (N, M): G of every position, connected or not; null: made of dy and x
  bool finish;                // multiply G by the factor of its row, which makes it dV where b = 0
  const double* dot_weights;  // (M,), null: not wanted; needs gradient
  double* dots;               // (dot_parts(connections),): parts of sum_k dot_weights[row_k] G_k v_k, before `finish`
  T* bias_gradient;           // (M,), null: not wanted
  Counted<T> counted;
  std::byte* workspace;  // columns_workspace bytes, aligned to 256
};

std::int64_t dot_parts(std::int64_t connections);

template <class T>
std::size_t forward_workspace(const Forward<T>& f, const Device& device);
template <class T>
cudaError_t forward(const Forward<T>& f, const Device& device, cudaStream_t stream);

template <class T>
std::size_t columns_workspace(const Columns<T>& c, const Device& device);
template <class T>
cudaError_t columns(const Columns<T>& c, const Device& device, cudaStream_t stream);

// The rows of a layer; `view` is the row view with its perm.
template <class T>
struct Layer {
  std::int64_t rows, connections;
  View view;
  const T* values;
  Excitability<T> excitability;
  Norm norm;
};

// e_i / D_i, 1 / D_i and what else the rows' values tell, (rows,) each. Any may be null.
template <class T>
cudaError_t row_factors(const Layer<T>& layer, Factor<T>* factors, double* inverse_d, Row* rows, cudaStream_t stream);

// w_k = (e / D)[row] v_k in the order of v; the same bits as on the CPU wherever `power` needs no pow.
template <class T>
cudaError_t effective_weight(const Layer<T>& layer, T* w, cudaStream_t stream);

// Where dC/de goes, row by row (rows,): as it is, or as parts of a sum. Either may be null.
template <class T>
struct RowGradients {
  T* each = nullptr;
  double* parts = nullptr;
};

// In: gradient = dC/dw, in the order of v; rows as row_factors left them, or null. Out: dv = dC/dv (may be `gradient`
// itself, or null) and de.
template <class T>
cudaError_t norm_gradient(const Layer<T>& layer, const T* gradient, const Row* rows, T* dv, const RowGradients<T>& de,
                          cudaStream_t stream);

// *result = sum of parts[0 .. count), 0 for none.
template <class T>
cudaError_t add_parts(const double* parts, std::int64_t count, T* result, cudaStream_t stream);

// The effective weights as a dense row-major (rows, inputs) matrix of `type`, which is T's or, with float, has 16 bits.
template <class T>
cudaError_t dense_weight(const Layer<T>& layer, const Factor<T>* factors, std::int64_t inputs, Type type, void* dense,
                         cudaStream_t stream);

}  // namespace dendnorm::cuda
