#include "cpu/norm.h"

#include <atomic>
#include <cmath>
#include <cstdint>

namespace dendnorm::cpu {
namespace {

constexpr std::int64_t kRowsPerItem = 16;

// body(row) for every row; `visits` is how often it reads each connection.
template <class T, class F>
void for_rows(const Layer<T>& layer, int visits, F body) {
  const std::int64_t items = (layer.rows + kRowsPerItem - 1) / kRowsPerItem;
  auto run = [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t last = end * kRowsPerItem < layer.rows ? end * kRowsPerItem : layer.rows;
    for (std::int64_t i = begin * kRowsPerItem; i < last; ++i) body(i);
  };
  if (layer.rows + visits * std::int64_t{layer.view.start[layer.rows]} < 20000) {
    run(0, items);
  } else {
    layer.threads(items, run);
  }
}

// The values of row i as doubles.
template <class T>
struct RowValues {
  const Layer<T>& layer;
  std::int64_t begin;

  double operator()(std::int64_t k) const { return layer.values[layer.view.perm[begin + k]]; }
};

template <class T>
Row measured(const Layer<T>& layer, std::int64_t i) {
  const std::int64_t begin = layer.view.start[i], count = layer.view.start[i + 1] - begin;
  return measure_row(layer.norm, count, Sequence<RowValues<T>>{count, {layer, begin}});
}

}  // namespace

template <class T>
bool row_factors(const Layer<T>& layer, T* first, T* second) {
  std::atomic<bool> wide{false};
  for_rows(layer, layer.norm.b != 0 ? 2 : 0, [&](std::int64_t i) {
    T one, rest;
    if (split_factor(factor_of(layer.excitability.of(i), measured(layer, i).inverse_d), &one, &rest)) {
      wide.store(true, std::memory_order_relaxed);
    }
    first[i] = one;
    if (second != nullptr) second[i] = rest;
  });
  return wide.load();
}

template <class T>
void effective_weight(const Layer<T>& layer, T* w) {
  for_rows(layer, 2, [&](std::int64_t i) {
    const double factor = factor_of(layer.excitability.of(i), measured(layer, i).inverse_d);
    for (std::int64_t k = layer.view.start[i]; k < layer.view.start[i + 1]; ++k) {
      const std::int32_t at = layer.view.perm[k];
      w[at] = static_cast<T>(factor * layer.values[at]);
    }
  });
}

template <class T>
void norm_gradient(const Layer<T>& layer, const T* gradient, T* dv, double* de) {
  const Norm& norm = layer.norm;
  for_rows(layer, 4, [&](std::int64_t i) {
    const std::int64_t begin = layer.view.start[i], end = layer.view.start[i + 1];
    const Row row = measured(layer, i);
    double pull = 0;  // with length 1 where b = 0: sum_j G_ij v_ij
    if (de != nullptr || norm.b != 0) {
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int32_t at = layer.view.perm[k];
        pull += static_cast<double>(gradient[at]) * (layer.values[at] / row.length);
      }
    }
    if (row.inverse_d == 0) pull = 0;
    if (de != nullptr) de[i] = excitability_gradient(row, pull);
    if (dv == nullptr) return;
    const double factor = factor_of(layer.excitability.of(i), row.inverse_d);
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int32_t at = layer.view.perm[k];
      double g = gradient[at];
      if (norm.b != 0) g -= pulled(norm, row, layer.values[at], pull);
      dv[at] = row.inverse_d == 0 ? T(0) : static_cast<T>(factor * g);
    }
  });
}

#define DENDNORM_INSTANTIATE(T)                           \
  template bool row_factors<T>(const Layer<T>&, T*, T*);  \
  template void effective_weight<T>(const Layer<T>&, T*); \
  template void norm_gradient<T>(const Layer<T>&, const T*, T*, double*);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cpu
