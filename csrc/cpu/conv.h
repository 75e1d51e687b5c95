// Sparse convolutions on the CPU: pointers and sizes, no Torch.
//
// Notation: B samples, C channels of H by W, M filters. A weight is the effective one: what a norm makes of the values
// is applied before, for each weight serves all samples and positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layer.h"
#include "core/window.h"
#include "cpu/parallel.h"

namespace dendnorm::cpu {

// A (B, C, H, W) tensor by its strides, in elements. Data null: absent.
struct Images {
  void* data = nullptr;
  std::int64_t sample = 0, channel = 0, row = 0, column = 0;
  Type type = Type::kFloat32;
};

struct ImageSizes {
  std::int64_t samples, channels, height, width;
};

struct ConvShape {
  Window window;
  std::int64_t samples, channels, height, width;  // of the input
  std::int64_t filters, connections;

  std::int64_t out_height() const { return window.positions(0, height); }
  std::int64_t out_width() const { return window.positions(1, width); }
  std::int64_t group_channels() const { return channels / window.groups; }
  std::int64_t group_filters() const { return filters / window.groups; }
};

inline ImageSizes input_sizes(const ConvShape& s) { return {s.samples, s.channels, s.height, s.width}; }
inline ImageSizes output_sizes(const ConvShape& s) { return {s.samples, s.filters, s.out_height(), s.out_width()}; }

// Where memory for a call comes from: aligned to 64 bytes, and there until it ends.
struct Room {
  std::byte* (*take)(void* context, std::size_t bytes);
  void* context;
};

// Y = the convolution of X, plus bias.
template <class T>
struct ConvForward {
  ConvShape shape;
  Images x, y;
  View rows, columns;  // rows with perm
  const T* weights;    // (nnz,) in column order
  const T* bias;       // (M,), null: none
  Threads threads;
  Room room;
};

// dX = its transpose of dY; G_k = sum over samples and positions of what connection k multiplies; sums of dY.
template <class T>
struct ConvBackward {
  ConvShape shape;
  Images dy, x;  // x is read where `gradient` is wanted
  Images dx;     // data null: not wanted
  View rows, columns;
  const T* weights;  // read where dx is wanted
  T* gradient;       // (nnz,) in column order, null: not wanted
  T* bias_gradient;  // (M,), null: not wanted
  Threads threads;
  Room room;
};

template <class T>
struct KernelsOf;  // cpu/kernels.h

template <class T>
void conv_forward(const ConvForward<T>& f, const KernelsOf<T>& kernels);
template <class T>
void conv_backward(const ConvBackward<T>& c, const KernelsOf<T>& kernels);

}  // namespace dendnorm::cpu
