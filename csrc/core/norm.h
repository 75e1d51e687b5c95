// The family of normalisations, once for every device:
//
//   w_i = (e_i / D_i) v_i,   D_i = n_i^a ||v_i||_p^b
//   dC/dv_i = (e_i / D_i) (G_i - b pull_i sign(u_i) |u_i|^(p-1)),   u_i = v_i / ||v_i||_p,   pull_i = sum_j G_ij u_ij
//   dC/de_i = n_i^-a ||v_i||_p^(1-b) pull_i
//
// n_i counts the connections that exist, whatever their values. The unit vector u takes the place of the paper's
// dot / ||v||^p * v^(p-1), which over- and underflows for large p. A row without connections, and with b != 0 a row of
// zeros, has w = 0 and passes no gradient: there the map v -> w has no derivative.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/platform.h"

namespace dendnorm {

struct Norm {
  double a = 0;
  double b = 0;
  double p = 2;
};

// x^y for x >= 0, without the cost of pow for the exponents that everybody uses, and with the same bits on every
// device: products are rounded in one way, and what pow rounds to is each library's own choice.
DENDNORM_HD inline double power(double x, double y) {
  if (y == 1) return x;
  if (y == 2) return x * x;
  if (y == -1) return 1 / x;
  constexpr int kMostProducts = 16;
  if (y >= 0 && y <= kMostProducts && y == static_cast<int>(y)) {
    double result = 1;
    for (int rest = static_cast<int>(y); rest > 0; rest >>= 1, x *= x) {
      if ((rest & 1) != 0) result *= x;
    }
    return result;
  }
  if (y == 0.5) return std::sqrt(x);
  return std::pow(x, y);
}

// sign(u) |u|^q with sign(0) = 0, also for q = 0.
DENDNORM_HD inline double signed_power(double u, double q) {
  if (q == 1) return u;
  return u == 0 ? 0.0 : std::copysign(power(std::fabs(u), q), u);
}

// The n values get(0), ..., get(n - 1) of a row, taken one after the other. Another way of taking them together (a warp
// of a GPU) has the same two members.
template <class Get>
struct Sequence {
  std::int64_t n;
  Get get;

  template <class F>
  DENDNORM_HD double sum(F of) const {
    double total = 0;
    for (std::int64_t k = 0; k < n; ++k) total += of(get(k));
    return total;
  }
  DENDNORM_HD double largest_size() const {
    double largest = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      const double size = std::fabs(get(k));
      if (size > largest) largest = size;
    }
    return largest;
  }
};

// For rows whose values nobody asks for: where b = 0 the number of connections tells everything.
struct NoValues {
  template <class F>
  DENDNORM_HD double sum(F) const {
    return 0;
  }
  DENDNORM_HD double largest_size() const { return 0; }
};

// ||v||_p from the sum of |v|^p. The values are asked, with the largest taken out, only where the sum of powers left
// the range in which a term that underflowed cannot matter.
template <class Values>
DENDNORM_HD double length_of_sum(double sum, const Values& values, double p) {
  if (!(sum <= 1e-200 || sum >= 1e290)) return power(sum, 1 / p);  // a NaN, too
  const double largest = values.largest_size();
  if (largest == 0 || std::isinf(largest)) return largest;
  return largest * power(values.sum([p, largest](double v) { return power(std::fabs(v) / largest, p); }), 1 / p);
}

// ||v||_p.
template <class Values>
DENDNORM_HD double length(const Values& values, double p) {
  return length_of_sum(values.sum([p](double v) { return power(std::fabs(v), p); }), values, p);
}

// What the rule needs to know of one row.
struct Row {
  double length = 1;     // ||v||_p; 1 where b = 0, for nobody asks
  double inverse_d = 0;  // 1 / D; 0 where the row is dead
};

// Of a row with n connections and, where b != 0, of this length.
DENDNORM_HD inline Row row_of(const Norm& norm, std::int64_t n, double length) {
  Row row;
  if (n == 0) return row;
  double d = power(static_cast<double>(n), norm.a);
  if (norm.b != 0) {
    row.length = length;
    if (row.length == 0) return row;
    d *= power(row.length, norm.b);
  }
  row.inverse_d = 1 / d;
  return row;
}

// Of a row with n connections; `values` is asked only where b != 0.
template <class Values>
DENDNORM_HD Row measure_row(const Norm& norm, std::int64_t n, const Values& values) {
  return row_of(norm, n, norm.b != 0 && n != 0 ? length(values, norm.p) : 1);
}

// e / D. A dead row's is 0 whatever its e is: 0 times infinity would make a neuron without connections NaN.
DENDNORM_HD inline double factor_of(double e, double inverse_d) { return inverse_d == 0 ? 0 : e * inverse_d; }

// A factor as first * second, where one float32 may not hold it; returns whether second is needed (it is 1 otherwise).
DENDNORM_HD inline bool split_factor(double factor, float* first, float* second) {
  *second = 1;
  const double size = std::fabs(factor);
  const bool wide = size != 0 && (size < 0x1p-100 || size > 0x1p100) && std::isfinite(size);
  if (wide) {
    int exponent = 0;
    factor = std::frexp(factor, &exponent);
    const int half = exponent / 2;
    factor = std::ldexp(factor, half);
    *second = static_cast<float>(std::ldexp(1.0, exponent - half));
  }
  *first = static_cast<float>(factor);
  return wide;
}

DENDNORM_HD inline bool split_factor(double factor, double* first, double* second) {
  *first = factor;
  *second = 1;
  return false;
}

// The part of dC/dv_k that G_k does not hold, for v_k in a row with this pull.
DENDNORM_HD inline double pulled(const Norm& norm, const Row& row, double v, double pull) {
  return norm.b * pull * signed_power(v / row.length, norm.p - 1);
}

// dC/de_i from the pull (b != 0) or, where b = 0, from sum_j G_ij v_ij in its place.
DENDNORM_HD inline double excitability_gradient(const Row& row, double pull) {
  return row.inverse_d * row.length * pull;
}

}  // namespace dendnorm
