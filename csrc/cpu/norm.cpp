#include "cpu/norm.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

// Costs are in connections that are visited, about half a nanosecond each.
constexpr i64 kWorthThreads = 20000;
constexpr i64 kCountCost = 8, kRowCost = 32, kPowCost = 96;  // of a row's factor, of its count, with a root, with pow
constexpr i64 kMostParts = 16;
constexpr i64 kBlock = 64;

// body(begin, end) for ranges that cover [0, count), between multiples of a block.
template <class F>
void for_ranges(const Threads& threads, i64 count, i64 cost, F body) {
  if (count * cost < kWorthThreads) return body(i64{0}, count);
  auto run = [&](i64 begin, i64 end) { body(begin * kBlock, std::min(end * kBlock, count)); };
  threads((count + kBlock - 1) / kBlock, run);
}

// Of what follows from a row's number of connections.
i64 count_cost(const Norm& norm) { return norm.a == 0 || norm.a == 1 ? kCountCost : kPowCost; }

template <class T>
i64 connections_of(const Layer<T>& layer) {
  return layer.view.start[layer.rows];
}

// sizes[k] = sizes[k]^y for a block of sizes of at least 0, with the products of `power`.
void raise(double* sizes, i64 count, double y) {
  constexpr double kMostProducts = 16;
  if (y == 1) return;
  if (!(y >= 2 && y <= kMostProducts && y == static_cast<int>(y))) {
    for (i64 k = 0; k < count; ++k) sizes[k] = power(sizes[k], y);
    return;
  }
  int rest = static_cast<int>(y);
  double result[kBlock];
  bool any = false;
  for (; rest > 1; rest >>= 1) {
    if ((rest & 1) != 0) {
      for (i64 k = 0; k < count; ++k) result[k] = any ? result[k] * sizes[k] : sizes[k];
      any = true;
    }
    for (i64 k = 0; k < count; ++k) sizes[k] *= sizes[k];
  }
  for (i64 k = 0; k < count && any; ++k) sizes[k] *= result[k];
}

// ---- Sums over rows ----

// So many sums for every row; each part has work enough to pay for them.
i64 parts_of(i64 connections, i64 rows) {
  i64 parts = 1;
  while (parts < kMostParts && connections >= 2 * parts * std::max(6 * rows, i64{4096})) parts *= 2;
  return parts;
}

// sums[row[k]] += term(k). Four at a time: the compiler may then load before it stores.
template <class Term>
void add_to_rows(const std::int32_t* row, i64 begin, i64 end, Term term, double* sums) {
  i64 k = begin;
  for (; k + 4 <= end; k += 4) {
    double four[4];
    std::int32_t to[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      four[u] = term(k + u);
      to[u] = row[k + u];
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sums[to[u]] += four[u];
  }
  for (; k < end; ++k) sums[row[k]] += term(k);
}

// finish(row, sum) for every row, where add(begin, end, sums) adds what a range of connections gives to sums of rows.
template <class T, class Add, class Finish>
void sum_rows(const Layer<T>& layer, i64 row_cost, Add add, Finish finish) {
  const i64 connections = connections_of(layer), rows = layer.rows, parts = parts_of(connections, rows);
  const std::unique_ptr<double[]> sums(new double[static_cast<std::size_t>(parts * rows)]);
  auto run = [&](i64 first, i64 last) {
    for (i64 part = first; part < last; ++part) {
      double* own = sums.get() + part * rows;
      std::fill(own, own + rows, 0.0);
      add(connections * part / parts, connections * (part + 1) / parts, own);
    }
  };
  if (connections < kWorthThreads) {
    run(0, parts);
  } else {
    layer.threads(parts, run);
  }
  for_ranges(layer.threads, rows, row_cost, [&](i64 begin, i64 end) {
    for (i64 part = 1; part < parts; ++part) {
      const double* other = sums.get() + part * rows;
      for (i64 i = begin; i < end; ++i) sums[i] += other[i];
    }
    for (i64 i = begin; i < end; ++i) finish(i, sums[i]);
  });
}

// The values of row i as doubles.
template <class T>
struct RowValues {
  const Layer<T>& layer;
  i64 begin;

  double operator()(i64 k) const { return layer.values[layer.view.perm[begin + k]]; }
};

template <class T>
Sequence<RowValues<T>> values_of(const Layer<T>& layer, i64 i) {
  const i64 begin = layer.view.start[i];
  return {layer.view.start[i + 1] - begin, {layer, begin}};
}

}  // namespace

template <class T>
void measure_rows(const Layer<T>& layer, Row* measured) {
  const Norm& norm = layer.norm;
  if (norm.b == 0) {
    for_ranges(layer.threads, layer.rows, count_cost(norm), [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) measured[i] = row_at(layer, nullptr, i);
    });
    return;
  }
  const bool root = norm.p == 1 || norm.p == 2;
  const T* values = layer.values;
  const std::int32_t* row = layer.row;
  const auto add = [=, p = norm.p](i64 begin, i64 end, double* sums) {
    const auto value = [values](i64 k) { return static_cast<double>(values[k]); };
    if (p == 1) return add_to_rows(row, begin, end, [&](i64 k) { return std::fabs(value(k)); }, sums);
    if (p == 2) return add_to_rows(row, begin, end, [&](i64 k) { return value(k) * value(k); }, sums);
    for (i64 k0 = begin; k0 < end; k0 += kBlock) {
      const i64 count = std::min(kBlock, end - k0);
      double powers[kBlock];
      for (i64 k = 0; k < count; ++k) powers[k] = std::fabs(value(k0 + k));
      raise(powers, count, p);
      add_to_rows(row + k0, 0, count, [&](i64 k) { return powers[k]; }, sums);
    }
  };
  sum_rows(layer, root ? kRowCost : kPowCost, add, [&](i64 i, double sum) {
    const auto values = values_of(layer, i);
    measured[i] = row_of(norm, values.n, length_of_sum(sum, values, norm.p));
  });
}

template <class T>
bool row_factors(const Layer<T>& layer, const Row* measured, T* first, T* second) {
  std::atomic<bool> wide{false};
  for_ranges(layer.threads, layer.rows, count_cost(layer.norm), [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      T one, rest;
      if (split_factor(factor_of(layer.excitability.of(i), row_at(layer, measured, i).inverse_d), &one, &rest)) {
        wide.store(true, std::memory_order_relaxed);
      }
      first[i] = one;
      if (second != nullptr) second[i] = rest;
    }
  });
  return wide.load();
}

namespace {

bool ordinary(double factor) { return std::fabs(factor) > 0x1p-40 && std::fabs(factor) < 0x1p40; }

}  // namespace

template <class T>
bool row_scales(const Layer<T>& layer, const Row* measured, bool whole, T* row, T* scale) {
  *scale = 1;
  if (!whole) {
    const double e = layer.excitability.of(0);
    if (e != 0 && !ordinary(e)) return false;
    *scale = static_cast<T>(e);
  }
  std::atomic<bool> usable{true};
  for_ranges(layer.threads, layer.rows, count_cost(layer.norm), [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const double inverse_d = row_at(layer, measured, i).inverse_d;
      const double factor = whole ? factor_of(layer.excitability.of(i), inverse_d) : inverse_d;
      const bool unused = layer.view.start[i] == layer.view.start[i + 1];
      if (!ordinary(factor) && !(unused && factor == 0)) return usable.store(false, std::memory_order_relaxed);
      row[i] = static_cast<T>(factor);
    }
  });
  return usable.load();
}

template <class T>
void inverse_ds(const Layer<T>& layer, const Row* measured, double* inverse_d) {
  for_ranges(layer.threads, layer.rows, count_cost(layer.norm), [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) inverse_d[i] = row_at(layer, measured, i).inverse_d;
  });
}

template <class T>
void effective_weight(const Layer<T>& layer, T* w) {
  const i64 cost = kPowCost + (layer.rows == 0 ? 0 : 2 * connections_of(layer) / layer.rows);
  for_ranges(layer.threads, layer.rows, cost, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const auto values = values_of(layer, i);
      const double factor = factor_of(layer.excitability.of(i), measure_row(layer.norm, values.n, values).inverse_d);
      for (i64 k = layer.view.start[i]; k < layer.view.start[i + 1]; ++k) {
        const std::int32_t at = layer.view.perm[k];
        w[at] = static_cast<T>(factor * layer.values[at]);
      }
    }
  });
}

namespace {

// Whether |v|^(p-1) and the length's are in the range of a double for every v of T; otherwise unit vectors are raised,
// which no power makes overflow.
template <class T>
bool raised_apart(const Norm& norm) {
  return sizeof(T) == 4 && norm.p - 1 <= 6;
}

// pull = sum_j G_ij u_ij of every row; where b = 0, whose length is 1, sum_j G_ij v_ij. For float32 no product leaves
// the range of a double.
template <class T, class Finish>
void sum_pulls(const Layer<T>& layer, const Row* measured, const T* gradient, Finish finish) {
  const auto add = [&, values = layer.values, row = layer.row](i64 begin, i64 end, double* sums) {
    const auto product = [&](i64 k) -> double {
      const double g = gradient[k], v = values[k];
      return sizeof(T) == 4 ? g * v : g * (v / measured[row[k]].length);
    };
    add_to_rows(row, begin, end, product, sums);
  };
  sum_rows(layer, kRowCost, add, [&](i64 i, double sum) {
    const Row& of = measured[i];
    finish(i, of.inverse_d == 0 ? 0 : sizeof(T) == 4 ? sum / of.length : sum);
  });
}

// Of a block of connections, what G is less by: pull[row] sign(v) |u|^(p-1), or, `apart`, |v|^(p-1) in the place of the
// latter.
template <class T>
void pulled_block(const Norm& norm, bool apart, const Row* measured, const double* pull, const std::int32_t* row,
                  const T* v, i64 count, double* share) {
  if (norm.p == 2 && apart) {
    for (i64 k = 0; k < count; ++k) share[k] = pull[row[k]] * v[k];
    return;
  }
  if (norm.p == 1) {
    for (i64 k = 0; k < count; ++k) {
      share[k] = v[k] == 0 ? 0.0 : pull[row[k]] * std::copysign(1.0, static_cast<double>(v[k]));
    }
    return;
  }
  if (apart) {
    for (i64 k = 0; k < count; ++k) share[k] = std::fabs(static_cast<double>(v[k]));
  } else {
    for (i64 k = 0; k < count; ++k) share[k] = std::fabs(v[k] / measured[row[k]].length);
  }
  raise(share, count, norm.p - 1);
  for (i64 k = 0; k < count; ++k) share[k] = pull[row[k]] * std::copysign(share[k], static_cast<double>(v[k]));
}

// dv of a range of connections; no `pull`: nothing is taken off.
template <class T, bool kScaled>
void pull_back(const Layer<T>& layer, const Row* measured, const double* pull, const T* gradient, i64 begin, i64 end,
               T* dv) {
  const bool apart = raised_apart<T>(layer.norm);
  for (i64 k0 = begin; k0 < end; k0 += kBlock) {
    const i64 count = std::min(kBlock, end - k0);
    const std::int32_t* row = layer.row + k0;
    double share[kBlock] = {};
    if (pull != nullptr) pulled_block(layer.norm, apart, measured, pull, row, layer.values + k0, count, share);
    for (i64 k = 0; k < count; ++k) {
      const double rest = gradient[k0 + k] - share[k];
      if constexpr (kScaled) {
        dv[k0 + k] = static_cast<T>(rest);
      } else {
        const double inverse_d = measured[row[k]].inverse_d;
        const double factor = factor_of(layer.excitability.of(row[k]), inverse_d);
        dv[k0 + k] = inverse_d == 0 ? T(0) : static_cast<T>(factor * rest);
      }
    }
  }
}

// The same for scaled gradients in the commonest case, where one product does it.
template <class T>
void pull_back_in_one(const Layer<T>& layer, const double* pull, const T* gradient, i64 begin, i64 end, T* dv) {
  for (i64 k = begin; k < end; ++k) {
    dv[k] = static_cast<T>(gradient[k] - pull[layer.row[k]] * layer.values[k]);
  }
}

}  // namespace

template <class T>
void norm_gradient(const Layer<T>& layer, const Row* measured, bool scaled, const T* gradient, T* dv, double* de) {
  const Norm& norm = layer.norm;
  const bool apart = raised_apart<T>(norm);
  std::unique_ptr<double[]> pulls;
  if (norm.b != 0 && dv != nullptr) pulls.reset(new double[static_cast<std::size_t>(layer.rows)]);
  if (pulls != nullptr || de != nullptr) {
    sum_pulls(layer, measured, gradient, [&](i64 i, double pull) {
      const Row& row = measured[i];
      if (pulls != nullptr) {
        pulls[i] = norm.b * (apart && row.inverse_d != 0 ? pull / power(row.length, norm.p - 1) : pull);
      }
      if (de == nullptr) return;
      if (scaled && row.inverse_d != 0) pull /= factor_of(layer.excitability.of(i), row.inverse_d);
      de[i] = excitability_gradient(row, pull);
    });
  }
  if (dv == nullptr || (scaled && pulls == nullptr && dv == gradient)) return;
  for_ranges(layer.threads, connections_of(layer), 1, [&](i64 begin, i64 end) {
    if (scaled && pulls != nullptr && apart && norm.p == 2) {
      pull_back_in_one(layer, pulls.get(), gradient, begin, end, dv);
    } else {
      (scaled ? pull_back<T, true> : pull_back<T, false>)(layer, measured, pulls.get(), gradient, begin, end, dv);
    }
  });
}

#define DENDNORM_INSTANTIATE(T)                                           \
  template void measure_rows<T>(const Layer<T>&, Row*);                   \
  template bool row_factors<T>(const Layer<T>&, const Row*, T*, T*);      \
  template bool row_scales<T>(const Layer<T>&, const Row*, bool, T*, T*); \
  template void inverse_ds<T>(const Layer<T>&, const Row*, double*);      \
  template void effective_weight<T>(const Layer<T>&, T*);                 \
  template void norm_gradient<T>(const Layer<T>&, const Row*, bool, const T*, T*, double*);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cpu
