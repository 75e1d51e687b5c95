#include "cpu/conv.h"

#include <algorithm>
#include <cstring>

#include "cpu/conv_plan.h"
#include "cpu/kernels.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

template <class T>
T* take(const Room& room, i64 elements) {
  return reinterpret_cast<T*>(room.take(room.context, static_cast<std::size_t>(elements) * sizeof(T)));
}

// Images as the kernels want them: where they lie, if they lie so, or in memory of their own.
template <class T>
class Slabs {
 public:
  Slabs(const Images& images, const ImageSizes& sizes, const KernelsOf<T>& kernels, const Room& room)
      : images_(images), sizes_(sizes), kernels_(kernels) {
    const i64 lanes = kernels.conv.lanes;
    if (in_place(lanes)) {
      slab = {static_cast<T*>(images.data), lanes, images.channel, images.row, images.column};
      return;
    }
    packed_ = true;
    slab.column = lanes;
    slab.row = sizes.width * slab.column;
    slab.channel = sizes.height * slab.row;
    slab.tile = sizes.channels * slab.channel;
    slab.data = take<T>(room, (sizes.samples + lanes - 1) / lanes * slab.tile);
  }
  void pack(const Threads& threads) const {
    if (packed_) kernels_.pack(images_, sizes_, slab, threads);
  }
  void unpack(const Threads& threads) const {
    if (packed_) kernels_.unpack(slab, sizes_, images_, threads);
  }

  Slab<T> slab{};

 private:
  bool in_place(i64 lanes) const {
    const Type type = sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32;
    const i64 line = lanes * static_cast<i64>(sizeof(T));
    return images_.type == type && images_.sample == 1 && sizes_.samples % lanes == 0 &&
           images_.channel % lanes == 0 && images_.row % lanes == 0 && images_.column % lanes == 0 &&
           reinterpret_cast<std::uintptr_t>(images_.data) % line == 0;
  }

  Images images_;
  ImageSizes sizes_;
  const KernelsOf<T>& kernels_;
  bool packed_ = false;
};

ImageSizes input_sizes(const ConvShape& s) { return {s.samples, s.channels, s.height, s.width}; }
ImageSizes output_sizes(const ConvShape& s) { return {s.samples, s.filters, s.out_height(), s.out_width()}; }

// sums[c] = that of channel c.
template <class T>
void sum_images(const Slab<T>& images, const ImageSizes& s, i64 lanes, T* sums, const Threads& threads) {
  const i64 tiles = (s.samples + lanes - 1) / lanes;
  auto body = [&](i64 begin, i64 end) {
    for (i64 c = begin; c < end; ++c) {
      double total = 0;
      for (i64 tile = 0; tile < tiles; ++tile) {
        for (i64 h = 0; h < s.height; ++h) {
          T row[64] = {};
          const T* from = images.data + tile * images.tile + c * images.channel + h * images.row;
          for (i64 w = 0; w < s.width; ++w) {
            for (i64 b = 0; b < lanes; ++b) row[b] += from[w * images.column + b];
          }
          for (i64 b = 0; b < lanes; ++b) total += row[b];
        }
      }
      sums[c] = static_cast<T>(total);
    }
  };
  threads(s.channels, body);
}

int worthwhile_threads(const ConvShape& s, const Threads& threads) {
  const double work = static_cast<double>(s.connections) * static_cast<double>(s.samples * s.out_height() * s.out_width());
  return work < 30000 ? 1 : threads.count;
}

}  // namespace

template <class T>
void conv_forward(const ConvForward<T>& f) {
  const ConvShape& s = f.shape;
  if (s.samples == 0 || s.filters == 0) return;
  const KernelsOf<T>& set = kernels<T>();
  ConvPlan<T> plan(s, f.rows, f.weights, ConvPlan<T>::Direction::kForward, set.conv);
  ConvPass<T>& p = plan.pass;
  const Slabs<T> x(f.x, input_sizes(s), set, f.room), y(f.y, output_sizes(s), set, f.room);
  x.pack(f.threads);
  p.in = x.slab;
  p.out = y.slab;
  p.bias = f.bias;
  const int threads = worthwhile_threads(s, f.threads);
  set.gather(p, f.threads, threads, take<std::byte>(f.room, threads * p.thread_bytes));
  y.unpack(f.threads);
}

template <class T>
void conv_backward(const ConvBackward<T>& c) {
  const ConvShape& s = c.shape;
  const bool wants_dx = c.dx.data != nullptr, wants_gradient = c.gradient != nullptr;
  if (s.samples == 0) {
    if (wants_gradient) std::fill(c.gradient, c.gradient + s.connections, T(0));
    if (c.bias_gradient != nullptr) std::fill(c.bias_gradient, c.bias_gradient + s.filters, T(0));
    return;
  }
  const KernelsOf<T>& set = kernels<T>();
  const Slabs<T> dy(c.dy, output_sizes(s), set, c.room);
  dy.pack(c.threads);
  if (wants_dx || wants_gradient) {
    using Direction = typename ConvPlan<T>::Direction;
    ConvPlan<T> plan(s, c.rows, c.weights,
                     !wants_gradient ? Direction::kInput
                     : wants_dx      ? Direction::kBoth
                                     : Direction::kGradient,
                     set.conv);
    ConvPass<T>& p = plan.pass;
    p.in = dy.slab;
    const int threads = worthwhile_threads(s, c.threads);
    std::byte* workspace = take<std::byte>(c.room, threads * p.thread_bytes);
    if (wants_gradient) {
      const Slabs<T> x(c.x, input_sizes(s), set, c.room);
      x.pack(c.threads);
      p.x = x.slab;
      p.gradient = c.gradient;
      p.partials = take<T>(c.room, p.parts * p.distance);
      if (wants_dx) {
        const Slabs<T> dx(c.dx, input_sizes(s), set, c.room);
        p.out = dx.slab;
        set.fused(p, c.threads, threads, workspace);
        dx.unpack(c.threads);
      } else {
        set.fused(p, c.threads, threads, workspace);
      }
    } else {
      const Slabs<T> dx(c.dx, input_sizes(s), set, c.room);
      p.out = dx.slab;
      set.gather(p, c.threads, threads, workspace);
      dx.unpack(c.threads);
    }
  }
  if (c.bias_gradient != nullptr) sum_images(dy.slab, output_sizes(s), set.conv.lanes, c.bias_gradient, c.threads);
}

template void conv_forward(const ConvForward<float>&);
template void conv_forward(const ConvForward<double>&);
template void conv_backward(const ConvBackward<float>&);
template void conv_backward(const ConvBackward<double>&);

}  // namespace dendnorm::cpu
