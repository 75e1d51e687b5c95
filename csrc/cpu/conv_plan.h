// How a convolution is cut. Compiled once, like plan.h.
#pragma once

#include <memory>

#include "cpu/conv.h"
#include "cpu/conv_pass.h"

namespace dendnorm::cpu {

// A plan owns the tables that its pass points to.
template <class T>
class ConvPlan {
 public:
  enum class Direction { kForward, kInput, kGradient, kBoth };

  ConvPlan(const ConvShape& shape, const View& rows, const View& columns, const T* weights, Direction direction,
           const ConvLimits& limits);
  ~ConvPlan();

  // Of the gradient, where so many tiles come in one call.
  void set_parts(std::int64_t tiles);

  ConvPass<T> pass;

 private:
  struct Tables;
  std::unique_ptr<Tables> tables_;
};

}  // namespace dendnorm::cpu
