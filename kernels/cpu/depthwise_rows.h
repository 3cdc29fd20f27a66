// Depthwise convolution of one block of 16 channels, row by row:
// y[row][q] = act(bias + sum_{i,j} taps[i][j] * x[row * s - top + i * d][q * s - left + j * d]).
// 3x3 slides along the row: the nine taps stay in registers, each column of x is loaded once and
// added to the two or three outputs that see it. For other windows see depthwise_windows.h.
// Columns outside the image are skipped, never multiplied by zero: inf and NaN stay where they are.
#pragma once

#include "kernels/cpu/depthwise_block.h"
#include "kernels/cpu/depthwise_windows.h"
#include "kernels/cpu/epilogue.h"

namespace fastdw {
namespace {

// A number that is a type: lambdas of C++17 have no template arguments.
template <int value>
struct Known {
  constexpr operator int() const { return value; }
};

// 3x3 with stride 1, Rows output rows at once. Of the Rows + 2 rows of x under them, those in
// [First, Last) lie inside the image. Each column of x is loaded once and added to the three
// outputs that see it.
template <int Rows, int First, int Last, class Lanes>
void slide_3x3(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t x_pixel = x_step<Lanes>(block), y_pixel = y_step<Lanes>(block);
  const int64_t width = block.width, width_out = block.width_out;
  const int64_t top = row - block.window.pad_top, left = -block.window.pad_left;
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
  auto column = [&](auto is_inside, int64_t at, auto add) __attribute__((always_inline)) {
    if (!is_inside && (at < 0 || at >= width)) return;
    const int64_t offset = at * x_pixel;
    FASTDW_UNROLL for (int i = First; i < Last; ++i) {
      const Vec value = load_lanes<Lanes>(x[i] + offset, load_count);
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) {
        const int tap_row = i - r;
        if (tap_row >= 0 && tap_row < 3) add(r, 3 * tap_row, value);
      }
    }
  };

  constexpr Known<0> unknown{};
  Vec sum0[Rows], sum1[Rows], sum2[Rows];
  FASTDW_UNROLL for (int r = 0; r < Rows; ++r) sum0[r] = sum1[r] = bias;
  column(unknown, left, [&](int r, int t, Vec v) { sum0[r] = fma(v, tap[t], sum0[r]); });
  column(unknown, left + 1, [&](int r, int t, Vec v) {
    sum0[r] = fma(v, tap[t + 1], sum0[r]);
    sum1[r] = fma(v, tap[t], sum1[r]);
  });
  auto outputs = [&](auto inside, int64_t from, int64_t to) __attribute__((always_inline)) {
    _Pragma("GCC unroll 3") for (int64_t q = from; q < to; ++q) {
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) sum2[r] = bias;
      column(inside, left + q + 2, [&](int r, int t, Vec v) {
        sum0[r] = fma(v, tap[t + 2], sum0[r]);
        sum1[r] = fma(v, tap[t + 1], sum1[r]);
        sum2[r] = fma(v, tap[t], sum2[r]);
      });
      FASTDW_UNROLL for (int r = 0; r < Rows; ++r) {
        store_lanes<Lanes>(clamped(sum0[r]), y[r] + q * y_pixel, store_count);
        sum0[r] = sum1[r];
        sum1[r] = sum2[r];
      }
    }
  };
  // Columns that surely lie inside the image need no question asked.
  const int64_t surely = left >= -2 ? larger(0, smaller(width_out, width - 2 - left)) : 0;
  outputs(Known<1>{}, 0, surely);
  outputs(unknown, surely, width_out);
}

// 3x3 with stride 2, two output columns at once.
template <int First, int Last, class Lanes>
void slide_3x3_by_2(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  const int64_t load_count = lanes_from(lane, block.load_channels);
  const int64_t store_count = lanes_from(lane, block.store_channels);
  const int64_t x_pixel = x_step<Lanes>(block), y_pixel = y_step<Lanes>(block);
  const int64_t width = block.width, width_out = block.width_out;
  const int64_t top = 2 * row - block.window.pad_top, left = -block.window.pad_left;
  const float* x[Last];
  FASTDW_UNROLL for (int i = First; i < Last; ++i) x[i] = block.x.row(top + i) + lane;
  float* y = block.y + (row - block.first_row) * block.y_row_stride + lane;
  Vec tap[9];
  FASTDW_UNROLL for (int t = 0; t < 9; ++t)
    tap[t] = Vec::load(block.taps + t * kChannelBlock + lane);
  const Vec bias = Vec::load(block.bias + lane);
  const VecClamp clamped(bounds);

  auto outputs = [&](auto columns, auto inside, int64_t q) __attribute__((always_inline)) {
    constexpr int count = decltype(columns){};
    const int64_t first = left + 2 * q;
    Vec sum[count];
    FASTDW_UNROLL for (int c = 0; c < count; ++c) sum[c] = bias;
    FASTDW_UNROLL for (int i = First; i < Last; ++i) {
      const float* at = x[i] + first * x_pixel;
      FASTDW_UNROLL for (int j = 0; j <= 2 * count; ++j) {
        if (!inside && (first + j < 0 || first + j >= width)) continue;
        const Vec value = load_lanes<Lanes>(at + j * x_pixel, load_count);
        const int c = j / 2;
        if (j % 2 == 1) {
          sum[c] = fma(value, tap[3 * i + 1], sum[c]);
        } else {
          if (c > 0) sum[c - 1] = fma(value, tap[3 * i + 2], sum[c - 1]);
          if (c < count) sum[c] = fma(value, tap[3 * i], sum[c]);
        }
      }
    }
    FASTDW_UNROLL for (int c = 0; c < count; ++c)
      store_lanes<Lanes>(clamped(sum[c]), y + (q + c) * y_pixel, store_count);
  };
  constexpr Known<1> one{}, yes{};
  constexpr Known<2> two{};
  constexpr Known<0> unknown{};
  int64_t q = 0;
  for (; q < width_out && left + 2 * q < 0; ++q) outputs(one, unknown, q);
  for (; q + 2 <= width_out && left + 2 * q + 4 < width; q += 2) outputs(two, yes, q);
  for (; q < width_out; ++q) outputs(one, unknown, q);
}

// Calls use(first, last): which of the rows_in rows of x under an output row, or two, lie inside
// the image. False where it is not all of them but at most one above and one below.
template <int rows_in, class Use>
FASTDW_INLINE bool with_rows_inside(const DepthwiseBlock& block, int64_t top, const Use& use) {
  const int64_t above = larger(0, -top), below = larger(0, top + rows_in - block.height);
  if (above > 1 || below > 1) return false;
  constexpr Known<0> zero{};
  constexpr Known<1> one{};
  constexpr Known<rows_in> all{};
  constexpr Known<rows_in - 1> less{};
  switch (above * 2 + below) {
    case 0: use(zero, all); break;
    case 1: use(zero, less); break;
    case 2: use(one, all); break;
    default: use(one, less);
  }
  return true;
}

// As many output rows from `row` on as one of the sliding kernels takes; 0 where none can.
template <class Lanes>
int64_t slide_rows(const DepthwiseBlock& block, int64_t row, int64_t lane, Clamp bounds) {
  const Window& window = block.window;
  const bool is_3x3 = window.kernel_h == 3 && window.kernel_w == 3 && window.dilation_h == 1 &&
                      window.dilation_w == 1;
  if (!is_3x3 || window.stride_h != window.stride_w || window.stride_h > 2) return 0;
  const int64_t top = row * window.stride_h - window.pad_top;
  if (window.stride_h == 2)
    return with_rows_inside<3>(block, top, [&](auto first, auto last) {
      slide_3x3_by_2<decltype(first){}, decltype(last){}, Lanes>(block, row, lane, bounds);
    });
  if (row + 2 <= block.last_row && with_rows_inside<4>(block, top, [&](auto first, auto last) {
        slide_3x3<2, decltype(first){}, decltype(last){}, Lanes>(block, row, lane, bounds);
      }))
    return 2;
  return with_rows_inside<3>(block, top, [&](auto first, auto last) {
    slide_3x3<1, decltype(first){}, decltype(last){}, Lanes>(block, row, lane, bounds);
  });
}

// y = activation(y) over the pixels of a row, and their sums: pixel p is added to chain p % 4.
template <Activation activation>
void finish_and_sum_pixels(float* y, int64_t y_pixel, int64_t pixels, int64_t channels,
                           float* sums) {
  constexpr int chains = 4;  // sums that do not wait for one another
  for (int64_t c = 0; c < channels; c += Vec::lanes) {
    const int64_t count = smaller(Vec::lanes, channels - c);
    Vec sum[chains];
    FASTDW_UNROLL for (int i = 0; i < chains; ++i) sum[i] = Vec::fill(0.0f);
    auto take = [&](Vec& to, int64_t pixel) __attribute__((always_inline)) {
      float* at = y + pixel * y_pixel + c;
      Vec v = count == Vec::lanes ? Vec::load(at) : Vec::load(at, count);
      if constexpr (activation != Activation::none) {
        v = activate<activation>(v);
        count == Vec::lanes ? v.store(at) : v.store(at, count);
      }
      to = to + v;
    };
    int64_t pixel = 0;
    for (; pixel + chains <= pixels; pixel += chains)
      FASTDW_UNROLL for (int i = 0; i < chains; ++i) take(sum[i], pixel + i);
    FASTDW_UNROLL for (int i = 0; i < chains - 1; ++i)
      if (pixel + i < pixels) take(sum[i], pixel + i);
    const Vec total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    count == Vec::lanes ? total.store(sums + c) : total.store(sums + c, count);
  }
}

void finish_and_sum(Activation activation, float* y, int64_t y_pixel, int64_t pixels,
                    int64_t channels, float* sums) {
  const auto run = [&](auto pixels_of) { pixels_of(y, y_pixel, pixels, channels, sums); };
  if (activation == Activation::hardswish)
    run(finish_and_sum_pixels<Activation::hardswish>);
  else if (activation == Activation::silu)
    run(finish_and_sum_pixels<Activation::silu>);
  else
    run(finish_and_sum_pixels<Activation::none>);  // the clamp was applied in registers
}

// What is left to do with a row while it is in the L1 cache: a smooth activation, its sum.
FASTDW_INLINE void finish_row(const DepthwiseBlock& block, int64_t row, int64_t lane) {
  const int64_t index = row - block.first_row;
  const int64_t channels = lanes_from(lane, block.store_channels);
  float* y = block.y + index * block.y_row_stride + lane;
  if (block.row_sums != nullptr)
    finish_and_sum(block.activation, y, block.y_pixel_stride, block.width_out, channels,
                   block.row_sums + index * block.row_sums_stride + lane);
  else
    finish(block.activation, y, block.y_pixel_stride, nullptr, 0, block.width_out, channels);
}

template <class Lanes>
void depthwise_lanes(const DepthwiseBlock& block, int64_t lane, Clamp bounds) {
  const bool finishes = block.row_sums != nullptr || !is_clamp(block.activation);
  for (int64_t row = block.first_row; row < block.last_row;) {
    int64_t rows = slide_rows<Lanes>(block, row, lane, bounds);
    if (rows == 0) {
      any_window_row<Lanes>(block, row, lane, bounds);
      rows = 1;
    }
    for (int64_t r = row; finishes && r < row + rows; ++r) finish_row(block, r, lane);
    row += rows;
  }
}

void depthwise_block(const DepthwiseBlock& block) {
  const bool smooth = !is_clamp(block.activation);
  const Clamp bounds = clamp_of(smooth ? Activation::none : block.activation);
  const int64_t lanes = larger(block.load_channels, block.store_channels);
  const bool blocked =
      block.x.pixel_stride == kChannelBlock && block.y_pixel_stride == kChannelBlock;
  for (int64_t lane = 0; lane < lanes; lane += Vec::lanes) {
    if (!whole_lanes(block, lane)) depthwise_lanes<PartLanes>(block, lane, bounds);
    else if (!blocked) depthwise_lanes<WholeLanes>(block, lane, bounds);
    else depthwise_lanes<BlockedLanes>(block, lane, bounds);
  }
}

}  // namespace
}  // namespace fastdw
