// The products of a sparse layer on the CPU: pointers and sizes, no Torch.
//
// Notation: B samples, N inputs, M outputs. A layer's values v lie in the order of its column view (grouped by input).
// The batch is the vector dimension: activations are packed into slabs P[tile][neuron][width], one tile for up to 64
// samples, so that one connection costs one aligned run of loads. Where a sum is cut follows from the shape and not
// from the number of threads, so the bits do not depend on it either.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layer.h"
#include "cpu/parallel.h"

namespace dendnorm::cpu {

// Factors of the rows: w = (first * second) v. `second` is null unless one float32 cannot hold the factor.
template <class T>
struct Factors {
  const T* first = nullptr;  // null: 1
  const T* second = nullptr;
};

// Y = X W^T + bias, over the row view or, for a single sample, the column view.
template <class T>
struct Forward {
  std::int64_t samples, inputs, outputs, connections;
  Activations x, y;
  View rows, columns;  // rows with perm
  const T* values;
  Factors<T> factors;
  const T* bias;         // null: none
  std::byte* workspace;  // forward_workspace bytes, aligned to 64
  Threads threads;
};

// One pass over the column view: dX = dY W and G_k = sum over the batch of dY[., row_k] X[., col_k].
template <class T>
struct Columns {
  std::int64_t samples, inputs, outputs, connections;
  Activations dy;
  Activations x;   // read where `gradient` is wanted
  Activations dx;  // data null: not wanted
  View columns;
  const T* values;  // read where dx is wanted
  Factors<T> factors;
  // (M,), null: `factors` apply. Where the factor of every row is row_scale[row] * scale, the first is taken into dY as
  // it is packed and the second into the results, so that nothing is looked up for a connection.
  const T* row_scale;
  T scale;
  T* gradient;                // (nnz,), null: not wanted
  bool finish;                // multiply G by the factor of its row, which makes it dV where b = 0
  const double* dot_weights;  // (M,), null: not wanted, or row_scale in its place
  double* dots;               // (N,), null: not wanted; sum over column j of dot_weights[row] G v, before `finish`
  T* bias_gradient;           // (M,), null: not wanted
  std::byte* workspace;       // columns_workspace bytes, aligned to 64
  Threads threads;
};

// What an instruction set offers.
struct Kernels {
  void (*forward_f32)(const Forward<float>&);
  void (*forward_f64)(const Forward<double>&);
  void (*columns_f32)(const Columns<float>&);
  void (*columns_f64)(const Columns<double>&);
  std::size_t (*forward_workspace_f32)(const Forward<float>&);
  std::size_t (*forward_workspace_f64)(const Forward<double>&);
  std::size_t (*columns_workspace_f32)(const Columns<float>&);
  std::size_t (*columns_workspace_f64)(const Columns<double>&);
};

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

// The set chosen for this processor.
const Kernels& kernels();

}  // namespace dendnorm::cpu
