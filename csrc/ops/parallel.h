// PyTorch's threads, for whatever compiler. at::parallel_for is a template that runs on the OpenMP of the compiler that
// includes it: Clang's would be a second runtime beside PyTorch's, whose pool waits while the other computes, and
// without OpenMP it would run on one thread. So the region is opened by the runtime's own entry, which GCC's pragmas
// call, too: libgomp has it, and LLVM's libomp for its sake. The one in the process answers, which PyTorch has loaded.
#pragma once

#include <ATen/Config.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#if AT_PARALLEL_OPENMP
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_num_threads();
int omp_get_thread_num();
}
#endif

namespace dendnorm::ops {

inline constexpr std::int64_t kEntries = 16384;  // of a pattern, for one thread

// Calls body(begin, end) for ranges that together cover [0, items), each of at least `grain` items but the last,
// possibly at the same time. What a body throws is thrown here, once all have ended.
template <class F>
void on_threads(std::int64_t items, std::int64_t grain, const F& body) {
#if AT_PARALLEL_OPENMP
  if (items <= 0) return;
  if (items <= grain || at::in_parallel_region() || at::get_num_threads() == 1) {
    body(std::int64_t{0}, items);
    return;
  }
  struct Region {
    std::int64_t items, grain;
    const F* body;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error = nullptr;
  } region{items, grain, std::addressof(body)};
  const auto work = [](void* data) {
    auto& [items, grain, body, failed, error] = *static_cast<Region*>(data);
    const std::int64_t threads = std::min<std::int64_t>(omp_get_num_threads(), (items + grain - 1) / grain);
    const std::int64_t size = (items + threads - 1) / threads, begin = omp_get_thread_num() * size;
    if (begin >= items) return;
    try {
      (*body)(begin, std::min(items, begin + size));
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  };
  GOMP_parallel(work, &region, 0, 0);
  if (region.error) std::rethrow_exception(region.error);
#else
  at::parallel_for(0, items, grain, body);
#endif
}

// Parts of at least `grain` items, as many as there are threads at most.
inline std::int64_t parts_of(std::int64_t items, std::int64_t grain) {
  return std::clamp<std::int64_t>(items / grain, 1, at::get_num_threads());
}

// Calls body(part) for every part, possibly at the same time.
struct PartsOnThreads {
  template <class F>
  void operator()(std::int64_t parts, const F& body) const {
    on_threads(parts, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) body(part);
    });
  }
};

}  // namespace dendnorm::ops
