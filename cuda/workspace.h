// Pieces of a workspace.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dendnorm::cuda {

// Hands out pieces of a workspace, each aligned to 256 bytes as its beginning is; without one it only adds up how much
// is needed. So one constructor, called with null and then with memory, says both how much and where.
class Workspace {
 public:
  explicit Workspace(std::byte* base) : base_(base) {}
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = bytes_;
    bytes_ = (at + static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return base_ != nullptr ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace dendnorm::cuda
