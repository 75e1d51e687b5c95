// The normalisation and its gradient over a whole layer; the rule of one row is in core/norm.h.
#pragma once

#include <cstdint>

#include "core/layer.h"
#include "core/norm.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace dendnorm::cpu {

// The rows of a layer whose values v lie in column order; `view.perm` leads from the row view to them.
template <class T>
struct Layer {
  std::int64_t rows;
  View view;
  const T* values;
  Excitability<T> excitability;
  Norm norm;
  Threads threads;
};

// e_i / D_i as first[i] * second[i]; returns whether second is needed at all (it is 1 otherwise, and left unwritten
// when null).
template <class T>
bool row_factors(const Layer<T>& layer, T* first, T* second);

// w_k = (e / D)[row] v_k, in the order of v.
template <class T>
void effective_weight(const Layer<T>& layer, T* w);

// In: gradient = dC/dw, in the order of v. Out: dv = dC/dv (may be `gradient` itself, or null) and de (rows,), the
// part of every row in dC/de (or null).
template <class T>
void norm_gradient(const Layer<T>& layer, const T* gradient, T* dv, double* de);

}  // namespace dendnorm::cpu
