// How the kernels get their threads: from the caller, who knows which pool the process has.
#pragma once

#include <cstdint>

namespace dendnorm::cpu {

// Calls body(context, begin, end) for ranges that together cover [0, items), possibly at the same time.
using ParallelBody = void (*)(void* context, std::int64_t begin, std::int64_t end);
using ParallelFor = void (*)(std::int64_t items, ParallelBody body, void* context);

struct Threads {
  ParallelFor run;
  int count;  // how many ranges are worth making; never decides a result's bits

  template <class F>
  void operator()(std::int64_t items, F& body) const {
    const auto call = [](void* context, std::int64_t begin, std::int64_t end) {
      (*static_cast<F*>(context))(begin, end);
    };
    if (items > 0) run(items, call, &body);
  }
};

}  // namespace dendnorm::cpu
