#include "cpu/conv.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/conv_plan.h"
#include "cpu/conv_strips.h"
#include "cpu/conv_tiles.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

constexpr i64 kNear = i64{16} << 20;  // bytes of packed images at a time, or one tile: they stay in the last cache

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

// Whether a window of one place sees images as a matrix of positions by channels, row by row: a linear layer.
bool is_linear(const ConvShape& s) {
  const Window& w = s.window;
  return w.area() == 1 && w.padding == std::array<i64, 4>{} && w.stride == std::array<i64, 2>{1, 1} && w.groups == 1;
}
bool is_matrix(const Images& images, const ImageSizes& s) {
  return images.data == nullptr || (images.channel == 1 && s.channels > 1 && images.row == s.width * images.column &&
                                    images.sample == s.height * images.row);
}
Activations matrix_of(const Images& images) { return {images.data, images.column, false, images.type}; }

// What both passes of the layer (Forward or Columns) have of the convolution's.
template <class Linear, class Pass>
Linear linear_of(const Pass& c) {
  const ConvShape& s = c.shape;
  Linear linear{};
  linear.samples = s.samples * s.height * s.width;
  linear.inputs = s.channels;
  linear.outputs = s.filters;
  linear.connections = s.connections;
  linear.x = matrix_of(c.x);
  linear.columns = c.columns;
  linear.values = c.weights;
  linear.threads = c.threads;
  return linear;
}

template <class T>
void linear_forward(const ConvForward<T>& f, const KernelsOf<T>& set) {
  auto linear = linear_of<Forward<T>>(f);
  linear.y = matrix_of(f.y);
  linear.rows = f.rows;
  linear.bias = f.bias;
  const ForwardPlan plan = plan_forward(linear, set.widths);
  set.forward(linear, plan, f.room.take(f.room.context, plan.workspace_bytes));
}

template <class T>
void linear_backward(const ConvBackward<T>& c, const KernelsOf<T>& set) {
  auto linear = linear_of<Columns<T>>(c);
  linear.dy = matrix_of(c.dy);
  linear.dx = matrix_of(c.dx);
  linear.gradient = c.gradient;
  linear.bias_gradient = c.bias_gradient;
  const ColumnsPlan plan = plan_columns(linear, set.widths);
  set.columns(linear, plan, c.room.take(c.room.context, plan.workspace_bytes));
}

}  // namespace

template <class T>
void conv_forward(const ConvForward<T>& given, const KernelsOf<T>& set) {
  if (samples_images(given.shape)) {
    ConvForward<T> f = given;
    f.shape = sampled(given.shape);
    f.x = sampled(given.x, given.shape.window);
    return conv_forward(f, set);
  }
  const ConvForward<T>& f = given;
  const ConvShape& s = f.shape;
  if (is_linear(s) && is_matrix(f.x, input_sizes(s)) && is_matrix(f.y, output_sizes(s))) return linear_forward(f, set);
  if (s.samples == 0 || s.filters == 0) return;
  if (prefers_strips(s, set.conv.lanes)) return strips_forward(f, set);
  ConvPlan<T> plan(s, f.rows, f.columns, f.weights, ConvPlan<T>::Direction::kForward, set.conv);
  ConvPass<T>& p = plan.pass;
  ImageTiles<T> x(f.x, input_sizes(s), set), y(f.y, output_sizes(s), set);
  const int threads = worthwhile_threads(s, f.threads);
  const i64 all = p.tiles, together = tiles_together(all, x.bytes_of_tile() + y.bytes_of_tile());
  CallMemory workspace;
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
void conv_backward(const ConvBackward<T>& given, const KernelsOf<T>& set) {
  if (samples_images(given.shape)) {
    ConvBackward<T> c = given;
    c.shape = sampled(given.shape);
    c.x = sampled(given.x, given.shape.window);
    if (c.dx.data != nullptr) {
      clear(c.dx, input_sizes(given.shape), c.threads);
      c.dx = sampled(given.dx, given.shape.window);
    }
    return conv_backward(c, set);
  }
  const ConvBackward<T>& c = given;
  const ConvShape& s = c.shape;
  if (is_linear(s) && is_matrix(c.dy, output_sizes(s)) && is_matrix(c.x, input_sizes(s)) &&
      is_matrix(c.dx, input_sizes(s))) {
    return linear_backward(c, set);
  }
  if (prefers_strips(s, set.conv.lanes)) return strips_backward(c, set);
  const bool wants_dx = c.dx.data != nullptr, wants_gradient = c.gradient != nullptr;
  std::vector<double> sums(c.bias_gradient != nullptr ? s.filters : 0, 0.0);
  if (s.samples == 0) {
    if (wants_gradient) std::fill(c.gradient, c.gradient + s.connections, T(0));
  } else {
    using Direction = typename ConvPlan<T>::Direction;
    const Direction direction = !wants_gradient ? Direction::kInput
                                : wants_dx      ? Direction::kBoth
                                                : Direction::kGradient;
    ConvPlan<T> plan(s, c.rows, c.columns, c.weights, direction, set.conv);
    ConvPass<T>& p = plan.pass;
    ImageTiles<T> dy(c.dy, output_sizes(s), set), x(c.x, input_sizes(s), set), dx(c.dx, input_sizes(s), set);
    const int threads = worthwhile_threads(s, c.threads);
    const i64 bytes =
        dy.bytes_of_tile() + (wants_gradient ? x.bytes_of_tile() : 0) + (wants_dx ? dx.bytes_of_tile() : 0);
    const i64 all = p.tiles, together = tiles_together(all, bytes);
    plan.set_parts(together);
    CallMemory workspace;
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

template void conv_forward(const ConvForward<float>&, const KernelsOf<float>&);
template void conv_forward(const ConvForward<double>&, const KernelsOf<double>&);
template void conv_backward(const ConvBackward<float>&, const KernelsOf<float>&);
template void conv_backward(const ConvBackward<double>&, const KernelsOf<double>&);

}  // namespace dendnorm::cpu
