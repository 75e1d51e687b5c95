// The normalisation and its gradient over a whole layer; the rule of one row is in core/norm.h.
//
// Sums over rows are formed in column order, as values and gradients lie: every part of the connections adds to sums of
// its own, and how many parts there are follows from the shape, so the bits do not depend on the threads.
#pragma once

#include <cstdint>

#include "core/layer.h"
#include "core/norm.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace dendnorm::cpu {

// The rows of a layer whose values v lie in column order; `view.perm` leads from the row view to them, and row[k] is
// the row of v_k.
template <class T>
struct Layer {
  std::int64_t rows;
  View view;
  const T* values;
  Excitability<T> excitability;
  Norm norm;
  Threads threads;
  const std::int32_t* row;
};

// Length and 1 / D of every row.
template <class T>
void measure_rows(const Layer<T>& layer, Row* measured);

// Row i out of what was measured; null where b = 0: what there is to know of a row is then its number of connections.
template <class T>
Row row_at(const Layer<T>& layer, const Row* measured, std::int64_t i) {
  if (measured != nullptr) return measured[i];
  return measure_row(layer.norm, std::int64_t{layer.view.start[i + 1]} - layer.view.start[i], NoValues{});
}

// e_i / D_i as first[i] * second[i]; returns whether second is needed at all (it is 1 otherwise, and left unwritten
// when null). `measured` may be null where b = 0.
template <class T>
bool row_factors(const Layer<T>& layer, const Row* measured, T* first, T* second);

// The same factors as row[i] times one number for all: that is `scale`, which is e, or, `whole`, 1. Returns whether
// row[i] and scale are all of a size that leaves ordinary activations and gradients in the range of T; rows without
// connections may have 0. Where one e is for all rows, or `whole`.
template <class T>
bool row_scales(const Layer<T>& layer, const Row* measured, bool whole, T* row, T* scale);

// 1 / D of every row.
template <class T>
void inverse_ds(const Layer<T>& layer, const Row* measured, double* inverse_d);

// w_k = (e / D)[row] v_k, in the order of v. Which connections go is decided by |w|, so each row is measured by itself,
// one value after the other, as on every device.
template <class T>
void effective_weight(const Layer<T>& layer, T* w);

// In: gradient = dC/dw, in the order of v, or, where it is `scaled`, dC/dw times the factor of its row; then no row
// with connections is dead, and no e is 0 where `de` is wanted. Out: dv = dC/dv (may be `gradient` itself, or null) and
// de (rows,), the part of every row in dC/de (or null).
template <class T>
void norm_gradient(const Layer<T>& layer, const Row* measured, bool scaled, const T* gradient, T* dv, double* de);

}  // namespace dendnorm::cpu
