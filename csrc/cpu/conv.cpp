#include "cpu/conv.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/conv_plan.h"
#include "cpu/kernels.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

constexpr i64 kNear = i64{16} << 20;  // bytes of packed images at a time, or one tile: they stay in the last cache

ImageSizes input_sizes(const ConvShape& s) { return {s.samples, s.channels, s.height, s.width}; }
ImageSizes output_sizes(const ConvShape& s) { return {s.samples, s.filters, s.out_height(), s.out_width()}; }

template <class T>
constexpr Type type_of() {
  return sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
}

i64 element_size(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

Images moved(Images images, i64 samples) {
  images.data = static_cast<std::byte*>(images.data) + samples * images.sample * element_size(images.type);
  return images;
}

// Lays what a call needs one behind the other, and then takes it at once.
class Workspace {
 public:
  i64 add(i64 bytes) {
    const i64 begin = bytes_;
    bytes_ += (bytes + 4095) / 4096 * 4096 + 64;  // not all at the same place of a cache
    return begin;
  }
  void take(const Room& room) { data_ = room.take(room.context, static_cast<std::size_t>(bytes_)); }
  template <class T>
  T* at(i64 begin) const {
    return reinterpret_cast<T*>(data_ + begin);
  }

 private:
  i64 bytes_ = 0;
  std::byte* data_ = nullptr;
};

// Images as the kernels want them: where they lie, if they lie so, or some tiles at a time in the workspace.
template <class T>
class Tiles {
 public:
  Tiles(const Images& images, const ImageSizes& sizes, const KernelsOf<T>& kernels)
      : images_(images), sizes_(sizes), kernels_(kernels), in_place_(lie_so()) {}

  i64 bytes_of_tile() const {
    return in_place_
               ? 0
               : sizes_.channels * sizes_.height * sizes_.width * kernels_.conv.lanes * static_cast<i64>(sizeof(T));
  }
  void add_to(Workspace& workspace, i64 tiles) {
    if (!in_place_) begin_ = workspace.add(tiles * bytes_of_tile());
  }

  // From tile `first` on.
  Slab<T> slab(const Workspace& workspace, i64 first) const {
    const i64 lanes = kernels_.conv.lanes;
    if (in_place_) {
      return {static_cast<T*>(images_.data) + first * lanes, lanes, images_.channel, images_.row, images_.column};
    }
    const i64 row = sizes_.width * lanes, channel = sizes_.height * row;
    return {workspace.at<T>(begin_), sizes_.channels * channel, channel, row, lanes};
  }
  void pack(const Slab<T>& slab, i64 first, i64 tiles, const Threads& threads) const {
    if (!in_place_) kernels_.pack(moved(images_, first * kernels_.conv.lanes), sizes_of(first, tiles), slab, threads);
  }
  void unpack(const Slab<T>& slab, i64 first, i64 tiles, const Threads& threads) const {
    if (!in_place_) kernels_.unpack(slab, sizes_of(first, tiles), moved(images_, first * kernels_.conv.lanes), threads);
  }

 private:
  bool lie_so() const {
    const i64 lanes = kernels_.conv.lanes;
    return images_.type == type_of<T>() && images_.sample == 1 && sizes_.samples % lanes == 0 &&
           images_.channel % lanes == 0 && images_.row % lanes == 0 && images_.column % lanes == 0 &&
           reinterpret_cast<std::uintptr_t>(images_.data) % (lanes * sizeof(T)) == 0;
  }
  ImageSizes sizes_of(i64 first, i64 tiles) const {
    ImageSizes sizes = sizes_;
    const i64 lanes = kernels_.conv.lanes;
    sizes.samples = std::min(tiles * lanes, sizes_.samples - first * lanes);
    return sizes;
  }

  Images images_;
  ImageSizes sizes_;
  const KernelsOf<T>& kernels_;
  bool in_place_;
  i64 begin_ = 0;
};

// How many tiles are packed together: a matter of sizes, for the sums of a gradient depend on it.
i64 tiles_together(i64 tiles, i64 bytes_of_tile) {
  return bytes_of_tile == 0 ? tiles : std::clamp<i64>(kNear / bytes_of_tile, 1, tiles);
}

int worthwhile_threads(const ConvShape& s, const Threads& threads) {
  const i64 positions = s.samples * s.out_height() * s.out_width();
  const i64 images = s.samples * (s.channels * s.height * s.width) + positions * s.filters;
  return s.connections * positions + 4 * images < 30000 ? 1 : threads.count;
}

// Adds the sums of every channel of some tiles.
template <class T>
void add_sums(const Slab<T>& images, const ImageSizes& s, i64 tiles, i64 lanes, double* sums, const Threads& threads) {
  auto body = [&](i64 begin, i64 end) {
    for (i64 c = begin; c < end; ++c) {
      for (i64 tile = 0; tile < tiles; ++tile) {
        for (i64 h = 0; h < s.height; ++h) {
          T row[64] = {};
          const T* from = images.data + tile * images.tile + c * images.channel + h * images.row;
          for (i64 w = 0; w < s.width; ++w) {
            for (i64 b = 0; b < lanes; ++b) row[b] += from[w * images.column + b];
          }
          for (i64 b = 0; b < lanes; ++b) sums[c] += row[b];
        }
      }
    }
  };
  threads(s.channels, body);
}

// A window of one place reads every so many rows and columns, and no others: then these are the images.
bool samples_images(const ConvShape& s) {
  const Window& w = s.window;
  return w.area() == 1 && w.padding == std::array<i64, 4>{} && w.stride != std::array<i64, 2>{1, 1};
}
ConvShape sampled(ConvShape s) {
  s.height = s.out_height();
  s.width = s.out_width();
  s.window.stride = {1, 1};
  return s;
}
Images sampled(Images images, const Window& window) {
  images.row *= window.stride[0];
  images.column *= window.stride[1];
  return images;
}

// Zeros. Images without gaps are one piece of memory.
void clear(const Images& images, const ImageSizes& s, const Threads& threads) {
  const i64 size = element_size(images.type), count = s.samples * s.channels * s.height * s.width;
  const i64 last = (s.samples - 1) * images.sample + (s.channels - 1) * images.channel + (s.height - 1) * images.row +
                   (s.width - 1) * images.column;
  auto* data = static_cast<std::byte*>(images.data);
  if (last + 1 == count) {
    constexpr i64 kPiece = i64{1} << 18;
    auto body = [&](i64 begin, i64 end) {
      std::memset(data + begin * kPiece, 0, std::min(end * kPiece, count * size) - begin * kPiece);
    };
    return threads((count * size + kPiece - 1) / kPiece, body);
  }
  auto body = [&](i64 begin, i64 end) {
    for (i64 item = begin; item < end; ++item) {
      auto* row = data + (item / s.height * images.channel + item % s.height * images.row) * size;
      for (i64 w = 0; w < s.width; ++w) {
        for (i64 b = 0; b < s.samples; ++b) std::memset(row + (w * images.column + b * images.sample) * size, 0, size);
      }
    }
  };
  threads(s.channels * s.height, body);
}

}  // namespace

template <class T>
void conv_forward(const ConvForward<T>& given) {
  if (samples_images(given.shape)) {
    ConvForward<T> f = given;
    f.shape = sampled(given.shape);
    f.x = sampled(given.x, given.shape.window);
    return conv_forward(f);
  }
  const ConvForward<T>& f = given;
  const ConvShape& s = f.shape;
  if (s.samples == 0 || s.filters == 0) return;
  const KernelsOf<T>& set = kernels<T>();
  ConvPlan<T> plan(s, f.rows, f.weights, ConvPlan<T>::Direction::kForward, set.conv);
  ConvPass<T>& p = plan.pass;
  Tiles<T> x(f.x, input_sizes(s), set), y(f.y, output_sizes(s), set);
  const int threads = worthwhile_threads(s, f.threads);
  const i64 all = p.tiles, together = tiles_together(all, x.bytes_of_tile() + y.bytes_of_tile());
  Workspace workspace;
  const i64 scratch = workspace.add(threads * p.thread_bytes);
  x.add_to(workspace, together);
  y.add_to(workspace, together);
  workspace.take(f.room);
  p.bias = f.bias;
  for (i64 first = 0; first < all; first += together) {
    p.tiles = std::min(together, all - first);
    p.items = p.tiles * p.items_of_tile;
    p.in = x.slab(workspace, first);
    p.out = y.slab(workspace, first);
    x.pack(p.in, first, p.tiles, f.threads);
    set.gather(p, f.threads, threads, workspace.at<std::byte>(scratch));
    y.unpack(p.out, first, p.tiles, f.threads);
  }
}

template <class T>
void conv_backward(const ConvBackward<T>& given) {
  if (samples_images(given.shape)) {
    ConvBackward<T> c = given;
    c.shape = sampled(given.shape);
    c.x = sampled(given.x, given.shape.window);
    if (c.dx.data != nullptr) {
      clear(c.dx, input_sizes(given.shape), c.threads);
      c.dx = sampled(given.dx, given.shape.window);
    }
    return conv_backward(c);
  }
  const ConvBackward<T>& c = given;
  const ConvShape& s = c.shape;
  const bool wants_dx = c.dx.data != nullptr, wants_gradient = c.gradient != nullptr;
  std::vector<double> sums(c.bias_gradient != nullptr ? s.filters : 0, 0.0);
  if (s.samples == 0) {
    if (wants_gradient) std::fill(c.gradient, c.gradient + s.connections, T(0));
  } else {
    const KernelsOf<T>& set = kernels<T>();
    using Direction = typename ConvPlan<T>::Direction;
    const Direction direction = !wants_gradient ? Direction::kInput
                                : wants_dx      ? Direction::kBoth
                                                : Direction::kGradient;
    ConvPlan<T> plan(s, c.rows, c.weights, direction, set.conv);
    ConvPass<T>& p = plan.pass;
    Tiles<T> dy(c.dy, output_sizes(s), set), x(c.x, input_sizes(s), set), dx(c.dx, input_sizes(s), set);
    const int threads = worthwhile_threads(s, c.threads);
    const i64 bytes =
        dy.bytes_of_tile() + (wants_gradient ? x.bytes_of_tile() : 0) + (wants_dx ? dx.bytes_of_tile() : 0);
    const i64 all = p.tiles, together = tiles_together(all, bytes);
    plan.set_parts(together);
    Workspace workspace;
    const i64 scratch = workspace.add(threads * p.thread_bytes);
    const i64 partials = wants_gradient ? workspace.add(p.parts * p.distance * static_cast<i64>(sizeof(T))) : 0;
    dy.add_to(workspace, together);
    if (wants_gradient) x.add_to(workspace, together);
    if (wants_dx) dx.add_to(workspace, together);
    workspace.take(c.room);
    p.gradient = c.gradient;
    p.partials = workspace.at<T>(partials);
    for (i64 first = 0; first < all; first += together) {
      p.tiles = std::min(together, all - first);
      p.items = p.tiles * p.items_of_tile;
      p.first = first == 0;
      p.last = first + together >= all;
      p.in = dy.slab(workspace, first);
      dy.pack(p.in, first, p.tiles, c.threads);
      if (wants_gradient) {
        p.x = x.slab(workspace, first);
        x.pack(p.x, first, p.tiles, c.threads);
      }
      if (wants_dx) p.out = dx.slab(workspace, first);
      if (wants_gradient) {
        set.fused(p, c.threads, threads, workspace.at<std::byte>(scratch));
      } else if (wants_dx) {
        set.gather(p, c.threads, threads, workspace.at<std::byte>(scratch));
      }
      if (wants_dx) dx.unpack(p.out, first, p.tiles, c.threads);
      if (!sums.empty()) add_sums(p.in, output_sizes(s), p.tiles, p.lanes, sums.data(), c.threads);
    }
  }
  for (std::size_t o = 0; o < sums.size(); ++o) c.bias_gradient[o] = static_cast<T>(sums[o]);
}

template void conv_forward(const ConvForward<float>&);
template void conv_forward(const ConvForward<double>&);
template void conv_backward(const ConvBackward<float>&);
template void conv_backward(const ConvBackward<double>&);

}  // namespace dendnorm::cpu
