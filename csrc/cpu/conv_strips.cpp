#include "cpu/conv_strips.h"

#include <algorithm>

#include "core/float16.h"
#include "cpu/conv_tiles.h"
#include "cpu/kernels.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

i64 divided_up(i64 x, i64 y) { return (x + y - 1) / y; }

// Samples as overlapping strips of `rows` output rows. A sample has room for `slot` of them: where there is another
// sample behind it, some strips of zeros keep what it reads apart from that.
struct Strips {
  i64 rows, count, slot;
  i64 step, height;  // input rows between strips, and of one
  i64 total;         // strips of all samples

  Strips(const ConvShape& s, i64 rows)
      : rows(rows),
        count(divided_up(s.out_height(), rows)),
        step(rows * s.window.stride[0]),
        height((rows - 1) * s.window.stride[0] + s.window.extent(0)) {
    const i64 apart = s.samples > 1 && height > step ? divided_up(height - step, step) : 0;
    slot = count + apart;
    total = s.samples * slot - apart;
  }
  i64 input_rows() const { return (total - 1) * step + height; }
  i64 output_rows() const { return total * rows; }
  // What they cost: rows of full vectors, those that strips share counted for the backward pass.
  i64 cost(i64 lanes) const { return divided_up(total, lanes) * (rows + divided_up(height, step / rows)); }
  ConvShape shape(ConvShape s) const {
    s.samples = total;
    s.height = height;
    s.window.padding[0] = s.window.padding[1] = 0;
    return s;
  }
};

Strips cheapest(const ConvShape& s, i64 lanes) {
  Strips best(s, s.out_height());
  for (i64 rows = s.out_height() - 1; rows >= 1; --rows) {
    const Strips strips(s, rows);
    if (strips.cost(lanes) < best.cost(lanes)) best = strips;
  }
  return best;
}

template <class T, class F>
void with_type(Type type, F f) {
  if constexpr (sizeof(T) == 8) {
    f(double{});
  } else {
    switch (type) {
      case Type::kBFloat16: return f(BFloat16{});
      case Type::kFloat16: return f(Float16{});
      default: return f(float{});
    }
  }
}

template <class T, class A>
T read(A value) {
  if constexpr (sizeof(A) == 2) {
    return to_float(value);
  } else {
    return value;
  }
}
template <class A, class T>
A write(T value) {
  if constexpr (sizeof(A) == 2) {
    return from_float<A>(value);
  } else {
    return value;
  }
}

// Images as (channels, rows, width), sample b from row b * apart on, `above` rows of zeros first, and zeros between.
template <class T>
void copy_in(const Images& from, const ImageSizes& s, i64 above, i64 apart, i64 rows, T* to, const Threads& threads) {
  with_type<T>(from.type, [&](auto a) {
    using A = decltype(a);
    auto body = [&](i64 begin, i64 end) {
      for (i64 item = begin; item < end; ++item) {
        const i64 c = item / rows, row = item % rows, b = std::min(row / apart, s.samples - 1);
        const i64 h = row - b * apart - above;
        const bool inside = h >= 0 && h < s.height;
        const A* in = static_cast<const A*>(from.data) + b * from.sample + c * from.channel + h * from.row;
        for (i64 w = 0; w < s.width; ++w) to[item * s.width + w] = inside ? read<T>(in[w * from.column]) : T(0);
      }
    };
    threads(s.channels * rows, body);
  });
}

// The other way: value(sample, channel, row, column) for all of them.
template <class T, class F>
void copy_out(const Images& to, const ImageSizes& s, const Threads& threads, F value) {
  with_type<T>(to.type, [&](auto a) {
    using A = decltype(a);
    auto body = [&](i64 begin, i64 end) {
      for (i64 item = begin; item < end; ++item) {
        const i64 h = item % s.height, c = item / s.height % s.channels, b = item / s.height / s.channels;
        A* out = static_cast<A*>(to.data) + b * to.sample + c * to.channel + h * to.row;
        for (i64 w = 0; w < s.width; ++w) out[w * to.column] = write<A>(value(b, c, h, w));
      }
    };
    threads(s.samples * s.channels * s.height, body);
  });
}

template <class T>
Images contiguous(T* data, i64 sample, i64 channel, i64 width) {
  return {data, sample, channel, width, 1, sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32};
}

}  // namespace

bool prefers_strips(const ConvShape& s, i64 lanes) {
  if (s.samples == 0 || s.samples >= lanes || s.window.area() == 1) return false;
  const i64 rows = s.out_height();
  return cheapest(s, lanes).rows < rows && 3 * cheapest(s, lanes).cost(lanes) < 2 * Strips(s, rows).cost(lanes);
}

template <class T>
void strips_forward(const ConvForward<T>& f, const KernelsOf<T>& set) {
  const ConvShape& s = f.shape;
  const Strips strips = cheapest(s, set.conv.lanes);
  const i64 in_rows = strips.input_rows(), rows = strips.output_rows(), width = s.out_width();
  CallMemory memory;
  const i64 x_at = memory.add(s.channels * in_rows * s.width * static_cast<i64>(sizeof(T)));
  const i64 y_at = memory.add(s.filters * rows * width * static_cast<i64>(sizeof(T)));
  memory.take(f.room);
  T *x = memory.at<T>(x_at), *y = memory.at<T>(y_at);
  copy_in(f.x, input_sizes(s), s.window.padding[0], strips.slot * strips.step, in_rows, x, f.threads);
  ConvForward<T> part = f;
  part.shape = strips.shape(s);
  part.x = contiguous(x, strips.step * s.width, in_rows * s.width, s.width);
  part.y = contiguous(y, strips.rows * width, rows * width, width);
  conv_forward(part, set);
  copy_out<T>(f.y, output_sizes(s), f.threads, [&](i64 b, i64 o, i64 i, i64 j) {
    return y[(o * rows + b * strips.slot * strips.rows + i) * width + j];
  });
}

template <class T>
void strips_backward(const ConvBackward<T>& c, const KernelsOf<T>& set) {
  const ConvShape& s = c.shape;
  const Strips strips = cheapest(s, set.conv.lanes);
  const i64 in_rows = strips.input_rows(), rows = strips.output_rows(), width = s.out_width(), size = sizeof(T);
  const i64 plane = strips.height * s.width, of_strip = s.channels * plane;
  const bool wants_dx = c.dx.data != nullptr, wants_gradient = c.gradient != nullptr;
  CallMemory memory;
  const i64 dy_at = memory.add(s.filters * rows * width * size);
  const i64 x_at = memory.add(wants_gradient ? s.channels * in_rows * s.width * size : 0);
  const i64 dx_at = memory.add(wants_dx ? strips.total * of_strip * size : 0);
  memory.take(c.room);
  T *dy = memory.at<T>(dy_at), *x = memory.at<T>(x_at), *dx = memory.at<T>(dx_at);
  copy_in(c.dy, output_sizes(s), 0, strips.slot * strips.rows, rows, dy, c.threads);
  ConvBackward<T> part = c;
  part.shape = strips.shape(s);
  part.dy = contiguous(dy, strips.rows * width, rows * width, width);
  if (wants_gradient) {
    copy_in(c.x, input_sizes(s), s.window.padding[0], strips.slot * strips.step, in_rows, x, c.threads);
    part.x = contiguous(x, strips.step * s.width, in_rows * s.width, s.width);
  }
  if (wants_dx) part.dx = contiguous(dx, of_strip, plane, s.width);
  conv_backward(part, set);
  if (!wants_dx) return;
  // Every strip that reads a row has a part of its gradient.
  copy_out<T>(c.dx, input_sizes(s), c.threads, [&](i64 b, i64 channel, i64 h, i64 w) {
    const i64 row = h + s.window.padding[0];
    const i64 first = row < strips.height ? 0 : (row - strips.height) / strips.step + 1;
    T sum = 0;
    for (i64 q = first; q < strips.count && q * strips.step <= row; ++q) {
      sum += dx[(b * strips.slot + q) * of_strip + channel * plane + (row - q * strips.step) * s.width + w];
    }
    return sum;
  });
}

template void strips_forward(const ConvForward<float>&, const KernelsOf<float>&);
template void strips_forward(const ConvForward<double>&, const KernelsOf<double>&);
template void strips_backward(const ConvBackward<float>&, const KernelsOf<float>&);
template void strips_backward(const ConvBackward<double>&, const KernelsOf<double>&);

}  // namespace dendnorm::cpu
