// What a row's sum is multiplied by, e / D.
#pragma once

#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

template <class T>
__device__ void write_factor(const Excitability<T>& e, i64 row, double inverse_d, Factor<T>* factors,
                             double* inverses) {
  if (inverses != nullptr) inverses[row] = inverse_d;
  if (factors == nullptr) return;
  Factor<T> factor;
  split_factor(factor_of(e.of(row), inverse_d), &factor.first, &factor.second);
  factors[row] = factor;
}

// The factor of a row by its number of connections, where b = 0.
template <class T>
__device__ void write_counted(const Counted<T>& c, i64 row) {
  const Norm norm{c.a, 0, 2};
  const Row measured = measure_row(norm, c.start[row + 1] - c.start[row], NoValues{});
  write_factor(c.excitability, row, measured.inverse_d, c.factors, c.inverse_d);
}

}  // namespace
}  // namespace dendnorm::cuda
