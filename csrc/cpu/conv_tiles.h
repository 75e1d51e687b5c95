// Images as the kernels want them, and the memory of a call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/conv.h"
#include "cpu/kernels.h"

namespace dendnorm::cpu {

template <class T>
constexpr Type type_of() {
  return sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
}

inline std::int64_t element_size(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

inline Images moved(Images images, std::int64_t samples) {
  images.data = static_cast<std::byte*>(images.data) + samples * images.sample * element_size(images.type);
  return images;
}

// Lays what a call needs one behind the other, and then takes it at once.
class CallMemory {
 public:
  std::int64_t add(std::int64_t bytes) {
    const std::int64_t begin = bytes_;
    bytes_ += (bytes + 4095) / 4096 * 4096 + 64;  // not all at the same place of a cache
    return begin;
  }
  void take(const Room& room) { data_ = room.take(room.context, static_cast<std::size_t>(bytes_)); }
  template <class T>
  T* at(std::int64_t begin) const {
    return reinterpret_cast<T*>(data_ + begin);
  }

 private:
  std::int64_t bytes_ = 0;
  std::byte* data_ = nullptr;
};

// Images as the kernels want them: where they lie, if they lie so, or some tiles at a time in the workspace.
template <class T>
class ImageTiles {
 public:
  ImageTiles(const Images& images, const ImageSizes& sizes, const KernelsOf<T>& kernels)
      : images_(images), sizes_(sizes), kernels_(kernels), in_place_(lie_so()) {}

  std::int64_t bytes_of_tile() const {
    return in_place_ ? 0
                     : sizes_.channels * sizes_.height * sizes_.width * kernels_.conv.lanes *
                           static_cast<std::int64_t>(sizeof(T));
  }
  void add_to(CallMemory& workspace, std::int64_t tiles) {
    if (!in_place_) begin_ = workspace.add(tiles * bytes_of_tile());
  }

  // From tile `first` on.
  Slab<T> slab(const CallMemory& workspace, std::int64_t first) const {
    const std::int64_t lanes = kernels_.conv.lanes;
    if (in_place_) {
      return {static_cast<T*>(images_.data) + first * lanes, lanes, images_.channel, images_.row, images_.column};
    }
    const std::int64_t row = sizes_.width * lanes, channel = sizes_.height * row;
    return {workspace.at<T>(begin_), sizes_.channels * channel, channel, row, lanes};
  }
  void pack(const Slab<T>& slab, std::int64_t first, std::int64_t tiles, const Threads& threads) const {
    if (!in_place_) kernels_.pack(moved(images_, first * kernels_.conv.lanes), sizes_of(first, tiles), slab, threads);
  }
  void unpack(const Slab<T>& slab, std::int64_t first, std::int64_t tiles, const Threads& threads) const {
    if (!in_place_) kernels_.unpack(slab, sizes_of(first, tiles), moved(images_, first * kernels_.conv.lanes), threads);
  }

 private:
  bool lie_so() const {
    const std::int64_t lanes = kernels_.conv.lanes;
    return images_.type == type_of<T>() && images_.sample == 1 && sizes_.samples % lanes == 0 &&
           images_.channel % lanes == 0 && images_.row % lanes == 0 && images_.column % lanes == 0 &&
           reinterpret_cast<std::uintptr_t>(images_.data) % (lanes * sizeof(T)) == 0;
  }
  ImageSizes sizes_of(std::int64_t first, std::int64_t tiles) const {
    ImageSizes sizes = sizes_;
    const std::int64_t lanes = kernels_.conv.lanes;
    sizes.samples = std::min(tiles * lanes, sizes_.samples - first * lanes);
    return sizes;
  }

  Images images_;
  ImageSizes sizes_;
  const KernelsOf<T>& kernels_;
  bool in_place_;
  std::int64_t begin_ = 0;
};

}  // namespace dendnorm::cpu
