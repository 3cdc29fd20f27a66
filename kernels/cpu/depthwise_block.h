// What the depthwise kernels are given: one block of 16 channels of a few rows, and how its lanes are
// reached.
#pragma once

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

// Rows of one channel block, possibly kept in a ring.
struct RowSource {
  const float* base;
  int64_t row_stride, pixel_stride;  // floats
  int64_t first_row, first_slot;     // the oldest row held, and its place in the ring
  int64_t ring_rows;

  FASTDW_INLINE const float* row(int64_t index) const {
    int64_t slot = first_slot + index - first_row;
    if (slot >= ring_rows) slot -= ring_rows;
    return base + slot * row_stride;
  }
};

struct DepthwiseBlock {
  RowSource x;
  int64_t height, width;
  float* y;  // where row first_row of the output goes
  int64_t y_row_stride, y_pixel_stride;
  int64_t first_row, last_row, width_out;
  const float* taps;  // [kernel_h * kernel_w][16]
  const float* bias;
  int64_t load_channels, store_channels;  // of this block, at most 16
  Window window;
  Activation activation;
  float* row_sums = nullptr;  // of row first_row: 16 floats, or null
  int64_t row_sums_stride = 0;
};

// How the lanes of a block are reached: with steps from pixel to pixel that are known at compile
// time (blocks of 16 channels on both sides), at run time, or at run time and not all of them.
struct BlockedLanes {
  static constexpr bool whole = true, blocked = true;
};
struct WholeLanes {
  static constexpr bool whole = true, blocked = false;
};
struct PartLanes {
  static constexpr bool whole = false, blocked = false;
};

template <class Lanes>
FASTDW_INLINE Vec load_lanes(const float* p, int64_t count) {
  return Lanes::whole ? Vec::load(p) : Vec::load(p, count);
}
template <class Lanes>
FASTDW_INLINE void store_lanes(Vec v, float* p, int64_t count) {
  Lanes::whole ? v.store(p) : v.store(p, count);
}
template <class Lanes>
FASTDW_INLINE int64_t x_step(const DepthwiseBlock& block) {
  return Lanes::blocked ? kChannelBlock : block.x.pixel_stride;
}
template <class Lanes>
FASTDW_INLINE int64_t y_step(const DepthwiseBlock& block) {
  return Lanes::blocked ? kChannelBlock : block.y_pixel_stride;
}
template <class Lanes>
FASTDW_INLINE float* y_at(const DepthwiseBlock& block, int64_t row, int64_t q) {
  return block.y + (row - block.first_row) * block.y_row_stride + q * y_step<Lanes>(block);
}

// How many of the lanes from `lane` on are channels.
FASTDW_INLINE int64_t lanes_from(int64_t lane, int64_t channels) {
  return larger(0, smaller(Vec::lanes, channels - lane));
}

// Whether the lanes [lane, lane + Vec::lanes) are all in use, for loads and stores alike.
FASTDW_INLINE bool whole_lanes(const DepthwiseBlock& block, int64_t lane) {
  return smaller(block.load_channels, block.store_channels) >= lane + Vec::lanes;
}

}  // namespace
}  // namespace fastdw
