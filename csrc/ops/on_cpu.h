// What every file needs that hands tensors to csrc/cpu: threads and memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "core/platform.h"
#include "cpu/parallel.h"
#include "ops/parallel.h"

namespace dendnorm::ops {

// PyTorch's threads. They get the caller's rounding and flush-to-zero modes, or a result would depend on who computed
// which part of it.
inline void parallel_for(std::int64_t items, cpu::ParallelBody body, void* context) {
  const std::uint64_t mode = platform::float_mode();
  on_threads(items, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::uint64_t own = platform::float_mode();
    if (own != mode) platform::set_float_mode(mode);
    body(context, begin, end);
    if (own != mode) platform::set_float_mode(own);
  });
}

inline cpu::Threads threads() { return {parallel_for, at::in_parallel_region() ? 1 : at::get_num_threads()}; }

// What the allocator may get anew from the system for every call, page by page.
inline constexpr std::size_t kAnew = std::size_t{8} << 20;
// What a thread keeps, at most.
inline constexpr std::size_t kKept = std::size_t{64} << 20;

// Asks for large pages where memory is new: ten thousand page faults fewer for 40 MB.
inline void prefer_large_pages(void* memory, std::size_t bytes) {
  if (bytes > kAnew) platform::prefer_large_pages(memory, bytes);
}

inline void prefer_large_pages(const at::Tensor& result) {
  prefer_large_pages(result.mutable_data_ptr(), result.nbytes());
}

// Memory for one call of a kernel. A thread keeps what its calls needed, up to a limit: the allocator tends to give
// blocks of this size back to the system after a step, and to get them again, page by page, for the next.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) {
    if (bytes > kKept) {
      own_ = allocate(bytes);
      prefer_large_pages(own_.get(), bytes);
      data_ = own_.get();
      return;
    }
    thread_local Memory kept;
    thread_local std::size_t size = 0;
    if (size < bytes) {
      size = 0;
      kept.reset();
      kept = allocate(bytes);
      prefer_large_pages(kept.get(), bytes);
      size = bytes;
    }
    data_ = kept.get();
  }
  std::byte* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kLine); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;

  static Memory allocate(std::size_t bytes) { return Memory(static_cast<std::byte*>(::operator new(bytes, kLine))); }

  Memory own_;
  std::byte* data_ = nullptr;
};

}  // namespace dendnorm::ops
