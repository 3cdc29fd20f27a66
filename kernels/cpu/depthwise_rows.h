// Depthwise convolution of one block of 16 channels, row by row:
// y[row][q] = act(bias + sum_{i,j} taps[i][j] * x[row * s - top + i * d][q * s - left + j * d]).
// 3x3 slides along the row: the nine taps stay in registers, each column of x is loaded once and
// added to the two or three outputs that see it. Other windows hold a tile of outputs in registers.
// Columns outside the image are skipped, never multiplied by zero: inf and NaN stay where they are.
#pragma once

#include "kernels/cpu/epilogue.h"
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
};

template <bool Whole>
FASTDW_INLINE Vec load_lanes(const float* p, int64_t count) {
  return Whole ? Vec::load(p) : Vec::load(p, count);
}
template <bool Whole>
FASTDW_INLINE void store_lanes(Vec v, float* p, int64_t count) {
  Whole ? v.store(p) : v.store(p, count);
}

FASTDW_INLINE float* y_pixel(const DepthwiseBlock& block, int64_t row, int64_t q) {
  return block.y + (row - block.first_row) * block.y_row_stride + q * block.y_pixel_stride;
}

// How many of the lanes from `lane` on are channels.
FASTDW_INLINE int64_t lanes_from(int64_t lane, int64_t channels) {
  return larger(0, smaller(Vec::lanes, channels - lane));
}

// Whether the lanes [lane, lane + Vec::lanes) are all in use, for loads and stores alike.
FASTDW_INLINE bool whole_lanes(const DepthwiseBlock& block, int64_t lane) {
  return smaller(block.load_channels, block.store_channels) >= lane + Vec::lanes;
}

// Rows output rows at once, 3x3, Stride 1 or 2. Of the Stride * (Rows - 1) + 3 rows of x under
// them, those in [First, Last) lie inside the image.
template <int Stride, int Rows, int First, int Last, bool Whole>
void slide_3x3(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t top = row * Stride - block.window.pad_top;
  const float* x[Last];
  float* y[Rows];
  FASTDW_UNROLL for (int i = First; i < Last; ++i) x[i] = block.x.row(top + i) + lane;
  FASTDW_UNROLL for (int r = 0; r < Rows; ++r)
    y[r] = block.y + (row + r - block.first_row) * block.y_row_stride + lane;
  Vec tap[9];
  FASTDW_UNROLL for (int t = 0; t < 9; ++t)
    tap[t] = Vec::load(block.taps + t * kChannelBlock + lane);
  const Vec bias = Vec::load(block.bias + lane);
  const VecClamp clamped(bounds);

  // Adds column `at` of x to the sums of the outputs that see it: add(output row, tap row, value).
  auto column = [&](int64_t at, auto add) __attribute__((always_inline)) {
    if (at < 0 || at >= block.width) return;
    FASTDW_UNROLL for (int i = First; i < Last; ++i) {
      const Vec value = load_lanes<Whole>(x[i] + at * block.x.pixel_stride, load_count);
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) {
        const int tap_row = i - r * Stride;
        if (tap_row >= 0 && tap_row < 3) add(r, 3 * tap_row, value);
      }
    }
  };

  const int64_t left = -block.window.pad_left;
  Vec sum0[Rows], sum1[Rows], sum2[Rows];
  FASTDW_UNROLL for (int r = 0; r < Rows; ++r) sum0[r] = sum1[r] = bias;
  column(left, [&](int r, int t, Vec v) { sum0[r] = fma(v, tap[t], sum0[r]); });
  if constexpr (Stride == 1) {
    column(left + 1, [&](int r, int t, Vec v) {
      sum0[r] = fma(v, tap[t + 1], sum0[r]);
      sum1[r] = fma(v, tap[t], sum1[r]);
    });
    _Pragma("GCC unroll 3") for (int64_t q = 0; q < block.width_out; ++q) {
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) sum2[r] = bias;
      column(left + q + 2, [&](int r, int t, Vec v) {
        sum0[r] = fma(v, tap[t + 2], sum0[r]);
        sum1[r] = fma(v, tap[t + 1], sum1[r]);
        sum2[r] = fma(v, tap[t], sum2[r]);
      });
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) {
        store_lanes<Whole>(clamped(sum0[r]), y[r] + q * block.y_pixel_stride, store_count);
        sum0[r] = sum1[r];
        sum1[r] = sum2[r];
      }
    }
  } else {
    _Pragma("GCC unroll 2") for (int64_t q = 0; q < block.width_out; ++q) {
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) sum1[r] = bias;
      column(left + 2 * q + 1,
             [&](int r, int t, Vec v) { sum0[r] = fma(v, tap[t + 1], sum0[r]); });
      column(left + 2 * q + 2, [&](int r, int t, Vec v) {
        sum0[r] = fma(v, tap[t + 2], sum0[r]);
        sum1[r] = fma(v, tap[t], sum1[r]);
      });
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) {
        store_lanes<Whole>(clamped(sum0[r]), y[r] + q * block.y_pixel_stride, store_count);
        sum0[r] = sum1[r];
      }
    }
  }
}

template <int Stride, int Rows, bool Whole>
bool slide_3x3_between(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  constexpr int rows_in = Stride * (Rows - 1) + 3;
  const int64_t top = row * Stride - block.window.pad_top;
  const int64_t above = larger(0, -top), below = larger(0, top + rows_in - block.height);
  if (above > 1 || below > 1) return false;
  switch (above * 2 + below) {
    case 0: slide_3x3<Stride, Rows, 0, rows_in, Whole>(block, row, lane, bounds); break;
    case 1: slide_3x3<Stride, Rows, 0, rows_in - 1, Whole>(block, row, lane, bounds); break;
    case 2: slide_3x3<Stride, Rows, 1, rows_in, Whole>(block, row, lane, bounds); break;
    default: slide_3x3<Stride, Rows, 1, rows_in - 1, Whole>(block, row, lane, bounds);
  }
  return true;
}

// Columns outputs from column q on, for any window whose taps [first_tap, last_tap) of each row lie
// inside the image for all of them.
template <int Columns, bool Whole>
void accumulate_columns(const DepthwiseBlock& block, int64_t row, int64_t q, int64_t first_tap,
                        int64_t last_tap, int64_t lane, Clamp bounds) {
  const Window& window = block.window;
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t top = row * window.stride_h - window.pad_top;
  const int64_t left = q * window.stride_w - window.pad_left;
  const int64_t step = window.stride_w * block.x.pixel_stride;
  Vec sum[Columns];
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c) sum[c] = Vec::load(block.bias + lane);
  for (int64_t i = 0; i < window.kernel_h; ++i) {
    const int64_t row_in = top + i * window.dilation_h;
    if (row_in < 0 || row_in >= block.height) continue;
    const float* x = block.x.row(row_in) + lane;
    const float* taps = block.taps + i * window.kernel_w * kChannelBlock + lane;
    for (int64_t j = first_tap; j < last_tap; ++j) {
      const Vec tap = Vec::load(taps + j * kChannelBlock);
      const float* at = x + (left + j * window.dilation_w) * block.x.pixel_stride;
      FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
        sum[c] = fma(load_lanes<Whole>(at + c * step, load_count), tap, sum[c]);
    }
  }
  float* y = y_pixel(block, row, q) + lane;
  const VecClamp clamped(bounds);
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
    store_lanes<Whole>(clamped(sum[c]), y + c * block.y_pixel_stride, store_count);
}

// The same with the width of the kernel and the stride known: each column of x is loaded once a row
// and added to every output of the tile that sees it.
template <int Kernel, int Stride, int Columns, bool Whole>
void slide_columns(const DepthwiseBlock& block, int64_t row, int64_t q, int64_t lane,
                   Clamp bounds) {
  const Window& window = block.window;
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t top = row * window.stride_h - window.pad_top;
  const int64_t left = (q * Stride - window.pad_left) * block.x.pixel_stride;
  Vec sum[Columns];
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c) sum[c] = Vec::load(block.bias + lane);
  for (int64_t i = 0; i < window.kernel_h; ++i) {
    const int64_t row_in = top + i * window.dilation_h;
    if (row_in < 0 || row_in >= block.height) continue;
    const float* x = block.x.row(row_in) + left + lane;
    const float* taps = block.taps + i * Kernel * kChannelBlock + lane;
    Vec tap[Kernel];
    FASTDW_UNROLL for (int j = 0; j < Kernel; ++j) tap[j] = Vec::load(taps + j * kChannelBlock);
    FASTDW_UNROLL for (int at = 0; at < (Columns - 1) * Stride + Kernel; ++at) {
      const Vec value = load_lanes<Whole>(x + at * block.x.pixel_stride, load_count);
      FASTDW_UNROLL for (int j = 0; j < Kernel; ++j) {
        const int c = at - j;
        if (c >= 0 && c % Stride == 0 && c / Stride < Columns)
          sum[c / Stride] = fma(value, tap[j], sum[c / Stride]);
      }
    }
  }
  float* y = y_pixel(block, row, q) + lane;
  const VecClamp clamped(bounds);
  FASTDW_UNROLL for (int c = 0; c < Columns; ++c)
    store_lanes<Whole>(clamped(sum[c]), y + c * block.y_pixel_stride, store_count);
}

template <int Columns, bool Whole>
void inner_columns(const DepthwiseBlock& block, int64_t row, int64_t q, int64_t lane,
                   Clamp bounds) {
  const Window& window = block.window;
  if (window.dilation_w == 1 && window.stride_w <= 2) {
    const bool one = window.stride_w == 1;
    switch (window.kernel_w) {
      case 3: return (one ? slide_columns<3, 1, Columns, Whole>
                          : slide_columns<3, 2, Columns, Whole>)(block, row, q, lane, bounds);
      case 5: return (one ? slide_columns<5, 1, Columns, Whole>
                          : slide_columns<5, 2, Columns, Whole>)(block, row, q, lane, bounds);
      case 7: return (one ? slide_columns<7, 1, Columns, Whole>
                          : slide_columns<7, 2, Columns, Whole>)(block, row, q, lane, bounds);
    }
  }
  accumulate_columns<Columns, Whole>(block, row, q, 0, window.kernel_w, lane, bounds);
}

template <bool Whole>
void any_window_row(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  constexpr int columns = 8;
  const Window& window = block.window;
  const int64_t span = (window.kernel_w - 1) * window.dilation_w;
  int64_t q = 0;
  while (q < block.width_out) {
    const int64_t left = q * window.stride_w - window.pad_left;
    const int64_t right = left + (columns - 1) * window.stride_w + span;
    if (left >= 0 && right < block.width && q + columns <= block.width_out) {
      inner_columns<columns, Whole>(block, row, q, lane, bounds);
      q += columns;
      continue;
    }
    const int64_t first_tap = left < 0 ? ceil_div(-left, window.dilation_w) : 0;
    const int64_t inside =
        left < block.width ? (block.width - 1 - left) / window.dilation_w + 1 : 0;
    accumulate_columns<1, Whole>(block, row, q, first_tap, smaller(inside, window.kernel_w), lane,
                                 bounds);
    ++q;
  }
}

template <bool Whole>
void depthwise_lanes(const DepthwiseBlock& block, int64_t lane, Clamp bounds) {
  const Window& window = block.window;
  const bool slides = window.kernel_h == 3 && window.kernel_w == 3 && window.dilation_h == 1 &&
                      window.dilation_w == 1 && window.stride_h == window.stride_w &&
                      window.stride_h <= 2;
  const bool one = window.stride_h == 1;
  for (int64_t row = block.first_row; row < block.last_row;) {
    if (slides) {
      if (one && row + 2 <= block.last_row &&
          slide_3x3_between<1, 2, Whole>(block, row, lane, bounds)) {
        row += 2;
        continue;
      }
      if ((one ? slide_3x3_between<1, 1, Whole>
               : slide_3x3_between<2, 1, Whole>)(block, row, lane, bounds)) {
        ++row;
        continue;
      }
    }
    any_window_row<Whole>(block, row, lane, bounds);
    ++row;
  }
}

void depthwise_block(const DepthwiseBlock& block) {
  const bool smooth = !is_clamp(block.activation);
  const Clamp bounds = clamp_of(smooth ? Activation::none : block.activation);
  const int64_t lanes = larger(block.load_channels, block.store_channels);
  for (int64_t lane = 0; lane < lanes; lane += Vec::lanes) {
    if (whole_lanes(block, lane)) depthwise_lanes<true>(block, lane, bounds);
    else depthwise_lanes<false>(block, lane, bounds);
  }
  if (!smooth) return;
  for (int64_t row = block.first_row; row < block.last_row; ++row)
    finish(block.activation, block.y + (row - block.first_row) * block.y_row_stride, nullptr,
           block.width_out, block.y_pixel_stride, block.store_channels);
}

}  // namespace
}  // namespace fastdw
