#include "cpu/conv.h"

#include <algorithm>
#include <vector>

#include "core/float16.h"

namespace dendnorm::cpu {
namespace {

using i64 = std::int64_t;

template <class T>
T read(const Images& images, i64 b, i64 c, i64 h, i64 w) {
  const i64 at = b * images.sample + c * images.channel + h * images.row + w * images.column;
  switch (images.type) {
    case Type::kFloat64: return static_cast<T>(static_cast<const double*>(images.data)[at]);
    case Type::kBFloat16: return to_float(static_cast<const BFloat16*>(images.data)[at]);
    case Type::kFloat16: return to_float(static_cast<const Float16*>(images.data)[at]);
    default: return static_cast<const float*>(images.data)[at];
  }
}

template <class T>
void write(const Images& images, i64 b, i64 c, i64 h, i64 w, T value) {
  const i64 at = b * images.sample + c * images.channel + h * images.row + w * images.column;
  switch (images.type) {
    case Type::kFloat64: static_cast<double*>(images.data)[at] = value; break;
    case Type::kBFloat16: static_cast<BFloat16*>(images.data)[at] = from_float<BFloat16>(value); break;
    case Type::kFloat16: static_cast<Float16*>(images.data)[at] = from_float<Float16>(value); break;
    default: static_cast<float*>(images.data)[at] = static_cast<float>(value);
  }
}

// f(channel, first row, first column of the input) for each tap of a filter, and its connection.
template <class F>
void for_taps(const ConvShape& s, const View& rows, i64 filter, F f) {
  const Window& w = s.window;
  for (i64 k = rows.start[filter]; k < rows.start[filter + 1]; ++k) {
    const i64 tap = rows.index[k], channel = filter / s.group_filters() * s.group_channels() + tap / w.area();
    f(rows.perm[k], channel, tap % w.area() / w.kernel[1] * w.dilation[0] - w.padding[0],
      tap % w.kernel[1] * w.dilation[1] - w.padding[2]);
  }
}

// f(output row, output column, input row, input column) where the input has it.
template <class F>
void for_positions(const ConvShape& s, i64 top, i64 left, F f) {
  for (i64 i = 0; i < s.out_height(); ++i) {
    const i64 h = i * s.window.stride[0] + top;
    if (h < 0 || h >= s.height) continue;
    for (i64 j = 0; j < s.out_width(); ++j) {
      const i64 w = j * s.window.stride[1] + left;
      if (w >= 0 && w < s.width) f(i, j, h, w);
    }
  }
}

}  // namespace

template <class T>
void conv_forward(const ConvForward<T>& f) {
  const ConvShape& s = f.shape;
  const i64 columns = s.out_width(), plane = s.out_height() * columns;
  auto body = [&](i64 begin, i64 end) {
    std::vector<T> sums(plane);
    for (i64 item = begin; item < end; ++item) {
      const i64 b = item / s.filters, o = item % s.filters;
      std::fill(sums.begin(), sums.end(), f.bias != nullptr ? f.bias[o] : T(0));
      for_taps(s, f.rows, o, [&](i64 k, i64 c, i64 top, i64 left) {
        for_positions(s, top, left, [&](i64 i, i64 j, i64 h, i64 w) {
          sums[i * columns + j] += f.weights[k] * read<T>(f.x, b, c, h, w);
        });
      });
      for (i64 p = 0; p < plane; ++p) write(f.y, b, o, p / columns, p % columns, sums[p]);
    }
  };
  f.threads(s.samples * s.filters, body);
}

template <class T>
void conv_backward(const ConvBackward<T>& c) {
  const ConvShape& s = c.shape;
  if (c.dx.data != nullptr) {
    auto body = [&](i64 begin, i64 end) {
      std::vector<T> sums(s.channels * s.height * s.width);
      for (i64 b = begin; b < end; ++b) {
        std::fill(sums.begin(), sums.end(), T(0));
        for (i64 o = 0; o < s.filters; ++o) {
          for_taps(s, c.rows, o, [&](i64 k, i64 channel, i64 top, i64 left) {
            for_positions(s, top, left, [&](i64 i, i64 j, i64 h, i64 w) {
              sums[(channel * s.height + h) * s.width + w] += c.weights[k] * read<T>(c.dy, b, o, i, j);
            });
          });
        }
        for (i64 p = 0; p < static_cast<i64>(sums.size()); ++p) {
          write(c.dx, b, p / (s.height * s.width), p / s.width % s.height, p % s.width, sums[p]);
        }
      }
    };
    c.threads(s.samples, body);
  }
  auto body = [&](i64 begin, i64 end) {
    for (i64 o = begin; o < end; ++o) {
      if (c.gradient != nullptr) {
        for_taps(s, c.rows, o, [&](i64 k, i64 channel, i64 top, i64 left) {
          double sum = 0;
          for (i64 b = 0; b < s.samples; ++b) {
            for_positions(s, top, left, [&](i64 i, i64 j, i64 h, i64 w) {
              sum += static_cast<double>(read<T>(c.dy, b, o, i, j)) * read<T>(c.x, b, channel, h, w);
            });
          }
          c.gradient[k] = static_cast<T>(sum);
        });
      }
      if (c.bias_gradient != nullptr) {
        double sum = 0;
        for (i64 b = 0; b < s.samples; ++b) {
          for (i64 i = 0; i < s.out_height(); ++i) {
            for (i64 j = 0; j < s.out_width(); ++j) sum += read<T>(c.dy, b, o, i, j);
          }
        }
        c.bias_gradient[o] = static_cast<T>(sum);
      }
    }
  };
  c.threads(s.filters, body);
}

template void conv_forward(const ConvForward<float>&);
template void conv_forward(const ConvForward<double>&);
template void conv_backward(const ConvBackward<float>&);
template void conv_backward(const ConvBackward<double>&);

}  // namespace dendnorm::cpu
