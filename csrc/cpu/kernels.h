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
#include "cpu/conv.h"
#include "cpu/conv_pass.h"
#include "core/platform.h"
#include "cpu/parallel.h"

namespace dendnorm::cpu {

// Factors of the rows: w = (first * second) v. `second` is null unless one float32 cannot hold the factor.
template <class T>
struct Factors {
  const T* first = nullptr;  // null: 1
  const T* second = nullptr;
};

// Y = X W^T + bias, over the row view or, for a single sample, the column view, where there is one.
template <class T>
struct Forward {
  std::int64_t samples, inputs, outputs, connections;
  Activations x, y;
  View rows, columns;  // rows without perm: the values lie in the order of the rows
  const T* values;
  Factors<T> factors;
  const T* bias;  // null: none
  Threads threads;
  const std::uint16_t* narrow = nullptr;  // the indices of the rows in 16 bits, which then have no others and no perm
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
  Threads threads;
};

// The widest tiles of an instruction set, in samples: of the forward pass and of the pass over the columns.
struct Widths {
  int forward, columns;
};

struct ForwardPlan;  // cpu/plan.h, which makes them of the same arguments and of `widths`
struct ColumnsPlan;

// What an instruction set offers for T. The workspace has the plan's size and is aligned to 64 bytes.
template <class T>
struct KernelsOf {
  static constexpr int kSlabBytes = sizeof(T);  // of an element
  Widths widths;
  void (*forward)(const Forward<T>&, const ForwardPlan&, std::byte* workspace);
  void (*columns)(const Columns<T>&, const ColumnsPlan&, std::byte* workspace);
  // Of convolutions. The workspace holds the scratch of so many threads.
  ConvLimits conv;
  void (*pack)(const Images&, const ImageSizes&, const Slab<T>&, const Threads&);
  void (*unpack)(const Slab<T>&, const ImageSizes&, const Images&, const Threads&);
  void (*gather)(const ConvPass<T>&, const Threads&, int threads, std::byte* workspace);
  void (*fused)(const ConvPass<T>&, const Threads&, int threads, std::byte* workspace);
};

// For bfloat16 activations, which stay as they are in the slabs: a connection reads half as many bytes. Products and
// sums are float32. No row_scale: 16 bits could not hold what it gives.
struct KernelsOfBFloat16 {
  static constexpr int kSlabBytes = 2;
  Widths widths;
  void (*forward)(const Forward<float>&, const ForwardPlan&, std::byte* workspace);
  void (*columns)(const Columns<float>&, const ColumnsPlan&, std::byte* workspace);
};

// Whether they take these activations; of few samples the bytes do not matter.
DENDNORM_INLINE bool stay_bfloat16(const Activations& activations, std::int64_t samples) {
  return activations.type == Type::kBFloat16 && samples > 16;
}

struct Kernels : KernelsOf<float>, KernelsOf<double> {
  template <class T>
  const KernelsOf<T>& of() const {
    return *this;
  }
};

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

const KernelsOfBFloat16& kernels_generic_bf16();
const KernelsOfBFloat16& kernels_avx2_bf16();
const KernelsOfBFloat16& kernels_avx512_bf16();
const KernelsOfBFloat16& kernels_avx512_dot();  // with AVX512_BF16
const KernelsOfBFloat16& kernels_neon_bf16();

// The set chosen for this processor.
const Kernels& chosen_kernels();
const KernelsOfBFloat16& chosen_kernels_bf16();

template <class T>
const KernelsOf<T>& kernels() {
  return chosen_kernels().of<T>();
}

}  // namespace dendnorm::cpu
