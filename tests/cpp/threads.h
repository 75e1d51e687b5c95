// Thread pools for the tests: the kernels take theirs from the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace dendnorm::cpu {

inline void run_serial(std::int64_t items, ParallelBody body, void* context) { body(context, 0, items); }

// One new thread for each of kCount ranges, so that a race is one that a sanitizer sees.
template <int kCount>
void run_threads(std::int64_t items, ParallelBody body, void* context) {
  const std::int64_t count = std::min<std::int64_t>(kCount, items);
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < count; ++t) {
    threads.emplace_back(body, context, items * t / count, items * (t + 1) / count);
  }
  for (std::thread& thread : threads) thread.join();
}

inline Threads threads_of(int count) {
  switch (count) {
    case 2: return {run_threads<2>, 2};
    case 3: return {run_threads<3>, 3};
    case 7: return {run_threads<7>, 7};
    default: return {run_serial, 1};
  }
}

}  // namespace dendnorm::cpu
