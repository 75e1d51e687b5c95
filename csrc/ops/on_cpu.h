// What every file needs that hands tensors to csrc/cpu.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/norm.h"
#include "cpu/parallel.h"
#include "ops/layer.h"
#include "ops/layer_ops.h"

namespace dendnorm::ops {

// PyTorch's threads.
cpu::Threads threads();

// Asks for large pages where memory is new and large: ten thousand page faults fewer for 40 MB.
void prefer_large_pages(void* memory, std::size_t bytes);
inline void prefer_large_pages(const at::Tensor& result) {
  prefer_large_pages(result.mutable_data_ptr(), result.nbytes());
}

// Memory for one call of a kernel. A thread keeps what its calls needed, up to a limit: the allocator tends to give
// blocks of this size back to the system after a step, and to get them again, page by page, for the next.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes);
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

// Refuses views of different patterns.
void check_same_pattern(const char* op, const Pattern& pattern);

template <class T>
cpu::Layer<T> threaded_layer(const at::Tensor& weight, const at::Tensor& excitability, const Pattern& pattern,
                             const Norm& norm) {
  auto layer = layer_of<cpu::Layer<T>, T>(weight, excitability, pattern, norm);
  layer.threads = threads();
  return layer;
}

// Sums per-row parts of dC/de to e's own shape.
template <class T>
void excitability_gradient(const std::vector<double>& parts, const at::Tensor& gradient) {
  T* data = gradient.mutable_data_ptr<T>();
  if (is_per_row(gradient)) {
    for (std::size_t i = 0; i < parts.size(); ++i) data[i] = static_cast<T>(parts[i]);
  } else {
    data[0] = static_cast<T>(std::accumulate(parts.begin(), parts.end(), 0.0));
  }
}

// dC/dv and dC/de, where they are defined, of dC/dw.
template <class T>
void raw_gradients(const cpu::Layer<T>& layer, const T* grad, const at::Tensor& dv, const at::Tensor& de) {
  std::vector<double> parts(de.defined() ? layer.rows : 0);
  cpu::norm_gradient(layer, grad, dv.defined() ? dv.mutable_data_ptr<T>() : nullptr,
                     de.defined() ? parts.data() : nullptr);
  if (de.defined()) excitability_gradient<T>(parts, de);
}

}  // namespace dendnorm::ops
