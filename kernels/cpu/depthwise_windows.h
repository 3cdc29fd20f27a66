// Depthwise convolution with any window: a tile of outputs is held in registers. Where the width of
// the kernel is 3, 5 or 7, and the stride 1 or 2, each column of x is loaded once for a tile.
#pragma once

#include "kernels/cpu/depthwise_block.h"
#include "kernels/cpu/epilogue.h"

namespace fastdw {
namespace {

// Columns outputs from column q on, for any window whose taps [first_tap, last_tap) of each row lie
// inside the image for all of them.
template <int Columns, class Lanes>
void accumulate_columns(const DepthwiseBlock& block, int64_t row, int64_t q, int64_t first_tap,
                        int64_t last_tap, int64_t lane, Clamp bounds) {
  const Window& window = block.window;
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t top = row * window.stride_h - window.pad_top;
  const int64_t left = q * window.stride_w - window.pad_left;
  const int64_t x_pixel = x_step<Lanes>(block), y_pixel = y_step<Lanes>(block);
  const int64_t step = window.stride_w * x_pixel;
  Vec sum[Columns];
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c) sum[c] = Vec::load(block.bias + lane);
  for (int64_t i = 0; i < window.kernel_h; ++i) {
    const int64_t row_in = top + i * window.dilation_h;
    if (row_in < 0 || row_in >= block.height) continue;
    const float* x = block.x.row(row_in) + lane;
    const float* taps = block.taps + i * window.kernel_w * kChannelBlock + lane;
    for (int64_t j = first_tap; j < last_tap; ++j) {
      const Vec tap = Vec::load(taps + j * kChannelBlock);
      const float* at = x + (left + j * window.dilation_w) * x_pixel;
      FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
        sum[c] = fma(load_lanes<Lanes>(at + c * step, load_count), tap, sum[c]);
    }
  }
  float* y = y_at<Lanes>(block, row, q) + lane;
  const VecClamp clamped(bounds);
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
    store_lanes<Lanes>(clamped(sum[c]), y + c * y_pixel, store_count);
}

// A tile of outputs whose kernel's width and stride are known: each column of x is loaded once a row
// and added to every output of the tile that sees it. Where the tile does not lie inside, columns
// outside the image are skipped and outputs beyond the row not stored.
template <int Kernel, int Stride, int Columns, bool Inside, class Lanes>
void slide_columns(const DepthwiseBlock& block, int64_t row, int64_t q, int64_t lane,
                   Clamp bounds) {
  const Window& window = block.window;
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t top = row * window.stride_h - window.pad_top;
  const int64_t x_pixel = x_step<Lanes>(block), y_pixel = y_step<Lanes>(block);
  const int64_t left = q * Stride - window.pad_left;
  Vec sum[Columns];
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c) sum[c] = Vec::load(block.bias + lane);
  for (int64_t i = 0; i < window.kernel_h; ++i) {
    const int64_t row_in = top + i * window.dilation_h;
    if (row_in < 0 || row_in >= block.height) continue;
    const float* x = block.x.row(row_in) + left * x_pixel + lane;
    const float* taps = block.taps + i * Kernel * kChannelBlock + lane;
    Vec tap[Kernel];
    FASTDW_UNROLL for (int j = 0; j < Kernel; ++j) tap[j] = Vec::load(taps + j * kChannelBlock);
    FASTDW_UNROLL for (int at = 0; at < (Columns - 1) * Stride + Kernel; ++at) {
      if (!Inside && (left + at < 0 || left + at >= block.width)) continue;
      const Vec value = load_lanes<Lanes>(x + at * x_pixel, load_count);
      FASTDW_UNROLL for (int j = 0; j < Kernel; ++j) {
        const int c = at - j;
        if (c >= 0 && c % Stride == 0 && c / Stride < Columns)
          sum[c / Stride] = fma(value, tap[j], sum[c / Stride]);
      }
    }
  }
  float* y = y_at<Lanes>(block, row, q) + lane;
  const VecClamp clamped(bounds);
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
    if (Inside || q + c < block.width_out)
      store_lanes<Lanes>(clamped(sum[c]), y + c * y_pixel, store_count);
}

// A row by tiles. `begin` and `end`: the outputs that see columns inside the image only.
template <int Kernel, int Stride, class Lanes>
void slide_row(const DepthwiseBlock& block, int64_t row, int64_t begin, int64_t end, int64_t lane,
               Clamp bounds) {
  constexpr int columns = 8;
  for (int64_t q = 0; q < block.width_out; q += columns)
    (q >= begin && q + columns <= end
         ? slide_columns<Kernel, Stride, columns, true, Lanes>
         : slide_columns<Kernel, Stride, columns, false, Lanes>)(block, row, q, lane, bounds);
}

// As slide_row, for the kernels that have one.
template <class Lanes>
bool slide_known_row(const DepthwiseBlock& block, int64_t row, int64_t begin, int64_t end,
                     int64_t lane, Clamp bounds) {
  const Window& window = block.window;
  if (window.dilation_w != 1 || window.stride_w > 2) return false;
  const bool one = window.stride_w == 1;
  switch (window.kernel_w) {
    case 3:
      (one ? slide_row<3, 1, Lanes> : slide_row<3, 2, Lanes>)(block, row, begin, end, lane, bounds);
      return true;
    case 5:
      (one ? slide_row<5, 1, Lanes> : slide_row<5, 2, Lanes>)(block, row, begin, end, lane, bounds);
      return true;
    case 7:
      (one ? slide_row<7, 1, Lanes> : slide_row<7, 2, Lanes>)(block, row, begin, end, lane, bounds);
      return true;
  }
  return false;
}

template <class Lanes>
void any_window_row(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  constexpr int columns = 8;
  const Window& window = block.window;
  const int64_t span = (window.kernel_w - 1) * window.dilation_w;
  // Outputs [begin, end) see columns inside the image only.
  const int64_t room = block.width - 1 - span + window.pad_left;
  const int64_t begin = smaller(ceil_div(window.pad_left, window.stride_w), block.width_out);
  const int64_t end =
      larger(begin, room < 0 ? 0 : smaller(room / window.stride_w + 1, block.width_out));
  if (slide_known_row<Lanes>(block, row, begin, end, lane, bounds)) return;
  const int64_t in_tiles = end - begin >= columns ? end : begin;
  for (int64_t q = begin; q < in_tiles; q += columns)  // the last tile overlaps
    accumulate_columns<columns, Lanes>(block, row, smaller(q, end - columns), 0, window.kernel_w,
                                       lane, bounds);
  const auto one_by_one = [&](int64_t from, int64_t to) {
    for (int64_t q = from; q < to; ++q) {
      const int64_t left = q * window.stride_w - window.pad_left;
      const int64_t first_tap = left < 0 ? ceil_div(-left, window.dilation_w) : 0;
      const int64_t inside =
          left < block.width ? (block.width - 1 - left) / window.dilation_w + 1 : 0;
      accumulate_columns<1, Lanes>(block, row, q, first_tap, smaller(inside, window.kernel_w),
                                   lane, bounds);
    }
  };
  one_by_one(0, begin);
  one_by_one(in_tiles, block.width_out);
}

}  // namespace
}  // namespace fastdw
