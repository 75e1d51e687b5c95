// Which values and which excitability stand for weights: the inverse of w_i = (e_i / D_i) v_i, and how a layer starts.
//
// The family has a free scale: v times c and e over c may stand for the same w. It is chosen so that v is w where a
// neuron is as the mean neuron is, so that a step of v is one of w, and a learning rate means what it means for a dense
// layer. Host code.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/norm.h"

namespace dendnorm {

// Standard deviation of the values of a layer whose neurons have so many connections in the mean, for outputs with
// about gain^2 times the variance of the inputs.
inline double value_deviation(double degree, double gain) { return gain / std::sqrt(degree > 1 ? degree : 1.0); }

// D of a neuron with so many connections, of values from N(0, deviation^2): ||v||_p = deviation (n E|z|^p)^(1/p). Where
// e starts, so that w = v there.
inline double excitability_start(const Norm& norm, double degree, double deviation) {
  if (degree == 0) return 1;
  // log E|z|^p for a standard normal z: 2^(p/2) Gamma((p + 1) / 2) / sqrt(pi)
  const double moment = norm.p / 2 * std::log(2.0) + std::lgamma((norm.p + 1) / 2) - std::log(3.141592653589793) / 2;
  const double log_length = std::log(deviation) + (std::log(degree) + moment) / norm.p;
  return std::exp(norm.a * std::log(degree) + (norm.b == 0 ? 0.0 : norm.b * log_length));
}

enum class RawFault {
  kNone,
  kZero,    // e is 0 where there is something to represent
  kLength,  // b = 1, and `needed` of a row is not the |e| that is given or that of the first row
};

struct RawOutcome {
  RawFault fault = RawFault::kNone;
  std::int64_t row = 0;  // of the fault
  double needed = 0, e = 0;
};

// v and e with (e_i / D_i) v_i = w_i, for finite w in any order and the row of each. `given` holds e where it is given,
// one for all (given_count 1) or one for each row; where it is free (0) it is chosen, one for all in result_e[0] or, if
// `variable`, one for each row. `start` is what e has where no weight decides it. b = 1 with one e for all can only
// represent rows of one length.
//
// Where b is not 0, v = 0 has no direction and no derivative, and would never learn. So a row of zeros, such as a layer
// that was made to start at 0 has, gets v of length 1 and an e of 0, where e is its own to choose.
template <class W>
RawOutcome raw_values(const Norm& norm, bool variable, std::int64_t rows, std::int64_t connections,
                      const std::int32_t* row, const W* w, const double* given, std::int64_t given_count, double start,
                      double* values, double* result_e) {
  std::vector<double> count(rows, 0), top(rows, 0), power_sum(rows, 0), length(rows, 1), d(rows, 1), factor(rows, 1);
  std::vector<bool> undirected(rows, false);
  for (std::int64_t k = 0; k < connections; ++k) {
    const double size = std::fabs(static_cast<double>(w[k]));
    count[row[k]] += 1;
    if (size > top[row[k]]) top[row[k]] = size;
  }
  for (std::int64_t k = 0; k < connections; ++k) {  // divided first: powers of 1e20 would overflow
    const double largest = top[row[k]];
    if (largest > 0) power_sum[row[k]] += std::pow(std::fabs(static_cast<double>(w[k])) / largest, norm.p);
  }
  std::int64_t live_rows = 0, first = -1;
  double mean_d = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    if (count[i] < 1) count[i] = 1;
    if (top[i] > 0) length[i] = top[i] * std::pow(power_sum[i], 1 / norm.p);
    d[i] = std::pow(count[i], norm.a) * (norm.b == 0 ? 1.0 : std::pow(length[i], norm.b));
    if (top[i] > 0) {
      if (first < 0) first = i;
      mean_d += d[i];
      ++live_rows;
    }
  }
  if (live_rows > 0) mean_d /= static_cast<double>(live_rows);

  const bool per_row = given_count > 0 ? given_count > 1 : variable;
  const bool chooses = norm.b != 0 && given_count == 0 && (variable || live_rows == 0);
  for (std::int64_t k = 0; chooses && k < connections; ++k) undirected[row[k]] = !(top[row[k]] > 0);
  const auto of_row = [&](std::int64_t i) { return result_e[per_row ? i : 0]; };
  for (std::int64_t i = 0; i < (per_row ? rows : 1); ++i) {
    if (given_count > 0) {
      result_e[i] = given[i];
    } else if (variable) {
      result_e[i] = undirected[i] ? 0 : top[i] > 0 ? d[i] : start;
    } else if (chooses && connections > 0) {
      result_e[i] = 0;
    } else if (norm.b == 1) {
      result_e[i] = first >= 0 ? d[first] : start;
    } else {
      result_e[i] = norm.b == 0 || live_rows == 0 ? start : mean_d;
    }
  }
  RawOutcome outcome;
  double worst = 1e-5;
  for (std::int64_t i = 0; i < rows; ++i) {
    const double e = of_row(i), sign = e < 0 ? -1 : 1;
    if (!(top[i] > 0)) {
      factor[i] = sign;
      continue;
    }
    if (norm.b == 1) {  // v's length plays no part
      const double off = std::fabs(d[i] / std::fabs(e) - 1);
      if (!(off <= worst)) {
        worst = off;
        outcome = {RawFault::kLength, i, d[i], std::fabs(e)};
      }
      factor[i] = sign;
    } else if (e == 0) {
      return {RawFault::kZero, i, d[i], 0};
    } else if (!(per_row && given_count == 0)) {
      // ||v|| = (||w|| n^a / |e|)^(1 / (1 - b)), along w and with e's sign.
      const double size = std::pow(length[i] * std::pow(count[i], norm.a) / std::fabs(e), 1 / (1 - norm.b));
      factor[i] = sign * size / length[i];
    }
  }
  for (std::int64_t k = 0; k < connections; ++k) {
    const double unit = std::pow(count[row[k]], -1 / norm.p);
    values[k] = undirected[row[k]] ? unit : factor[row[k]] * static_cast<double>(w[k]);
  }
  return outcome;
}

}  // namespace dendnorm
