// A pass of a convolution over images, as the kernels of an instruction set get it. Only plain numbers: see
// impl/base.h.
//
// Both directions are one loop over the rows of a view: a row's results at a run of positions are sums of what is
// gathered at constant offsets from a staged region. Forward, rows are filters and the input is gathered, split into
// the phases of the stride. Backward, rows are the channels of the input in each phase, and dY is gathered.
#pragma once

#include <cstdint>

namespace dendnorm::cpu {

// The shapes of runs (rows, columns) that there are kernels for.
struct RunShape {
  int rows, columns;
};
#define DENDNORM_RUN_SHAPES(X) \
  X(1, 1)                      \
  X(1, 2)                      \
  X(1, 3)                      \
  X(1, 4)                      \
  X(1, 5)                      \
  X(1, 6)                      \
  X(1, 7)                      \
  X(1, 8)                      \
  X(1, 10)                     \
  X(1, 12)                     \
  X(1, 14) X(2, 2) X(2, 4) X(2, 5) X(2, 6) X(2, 7) X(2, 8) X(2, 10) X(2, 12) X(2, 14) X(3, 4) X(4, 2) X(4, 3) X(4, 4)

// What an instruction set has room for: samples in a vector, and positions in registers, of both passes.
struct ConvLimits {
  int lanes, gathered, fused;
  bool streams;  // a vector is a line of the cache, and may go past it
};

// Images with `lanes` samples innermost, aligned: steps in elements.
template <class T>
struct Slab {
  T* data;
  std::int64_t tile, channel, row, column;
};

// Rows or columns of images on both sides of a pass.
struct ConvAxis {
  // The gathered side: row r of phase p of a region that begins at position s is row
  // (s + offset + r) * step + residue[p] of the image.
  std::int64_t size, step, offset, region, gathered_phases;
  const std::int64_t* residue;
  // The side of the results: position u of phase p is row first[p] + u * apart, and reads what begins at shift[p] + u.
  std::int64_t phases, apart;
  const std::int64_t *first, *shift, *count;
  std::int64_t run, runs;
};

template <class T>
struct ConvPass {
  ConvAxis axis[2];
  std::int64_t lanes, tiles, groups;
  std::int64_t in_channels, out_channels;  // of a group
  std::int64_t blocks, block;              // of gathered channels
  std::int64_t pitch, plane;               // elements between staged rows, and between phases
  // Rows of the view: those of block b of group g begin at (g * blocks + b) * view_rows, ordered by their count.
  std::int64_t view_rows, connections;
  const std::int32_t *start, *channel, *phase;
  const std::int32_t *offset, *source;
  const T* value;
  Slab<T> in, out, x;
  const T* bias;
  T *gradient, *partials;                   // of all, by `source`; of each part of the items, in the order of the view
  std::int64_t parts, distance;             // elements between those of two parts
  std::int64_t items, items_of_tile, step;  // of work; rows of runs in an item, but for the last of a tile
  std::int64_t scratch;                     // elements of a thread
  std::int64_t thread_bytes;                // of its workspace
  bool first, last;                         // of the calls that add to one gradient
  bool stream, wants_dx;
};

}  // namespace dendnorm::cpu
