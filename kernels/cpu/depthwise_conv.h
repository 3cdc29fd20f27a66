// y[n, r, q, o] =
//   act(bias[o] + sum_{i,j} taps[o][i][j] x[n, r s - top + i d, q s - left + j d, o / m])
// 16 channels at a time, straight from the user's memory. With a depth multiplier m the 16 input
// channels of a block of outputs are first laid side by side in a ring of rows.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/depthwise_rows.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

int64_t depthwise_conv_scratch(const DepthwiseParams& params) {
  if (params.multiplier == 1) return 0;
  return smaller(params.height, rows_under(params.window, 1)) * params.width * kChannelBlock;
}

// Fills `row` with [column][16] of x: lane o holds input channel (first_channel + o) / multiplier.
void spread_channels(const DepthwiseParams& params, const float* x, int64_t first_channel,
                     int64_t channels, float* row) {
  for (int64_t lane = 0; lane < channels; ++lane) {
    const int64_t channel = (first_channel + lane) / params.multiplier;
    const int64_t block = channel / kChannelBlock, lane_in = channel % kChannelBlock;
    const float* from = x + block * params.x_layout.block + lane_in;
    for (int64_t column = 0; column < params.width; ++column, from += params.x_layout.pixel)
      row[column * kChannelBlock + lane] = *from;
  }
}

// Output rows one by one: the rows under each are spread into a ring once.
void multiplied_rows(const DepthwiseParams& params, DepthwiseBlock call, const float* x,
                     int64_t first_channel, float* ring) {
  const int64_t row_floats = params.width * kChannelBlock;
  const int64_t ring_rows = smaller(params.height, rows_under(params.window, 1));
  const int64_t last_row = call.last_row;
  float* y = call.y;
  int64_t spread = 0;
  for (int64_t row = call.first_row; row < last_row; ++row) {
    const int64_t top = row * params.window.stride_h - params.window.pad_top;
    const int64_t from = larger(0, smaller(top, params.height));
    const int64_t to = larger(from, smaller(params.height, top + rows_under(params.window, 1)));
    for (int64_t r = larger(spread, from); r < to; ++r)
      spread_channels(params, x + r * params.width * params.x_layout.pixel, first_channel,
                      call.store_channels, ring + r % ring_rows * row_floats);
    spread = larger(spread, to);
    call.x = {ring, row_floats, kChannelBlock, from, from % ring_rows, ring_rows};
    call.y = y + (row - call.first_row) * call.y_row_stride;
    DepthwiseBlock one = call;
    if (call.row_sums != nullptr)
      one.row_sums = call.row_sums + (row - call.first_row) * call.row_sums_stride;
    one.first_row = row;
    one.last_row = row + 1;
    depthwise_block(one);
  }
}

void depthwise_image_rows(const DepthwiseParams& params, int64_t image, int64_t first_row,
                          int64_t last_row, float* scratch) {
  const int64_t channels_out = params.channels_in * params.multiplier;
  const int64_t taps = params.window.kernel_h * params.window.kernel_w * kChannelBlock;
  const Layout &from = params.x_layout, &to = params.y_layout;
  const float* x = params.x + image * from.image;
  float* y = params.y + image * to.image + first_row * params.width_out * to.pixel;
  for (int64_t block = 0; block < channel_blocks(channels_out); ++block) {
    const int64_t channel = block * kChannelBlock;
    DepthwiseBlock call{};
    call.height = params.height;
    call.width = params.width;
    call.y = y + block * to.block;
    call.y_row_stride = params.width_out * to.pixel;
    call.y_pixel_stride = to.pixel;
    call.first_row = first_row;
    call.last_row = last_row;
    call.width_out = params.width_out;
    call.taps = params.weights.taps + block * taps;
    call.bias = params.weights.bias + channel;
    call.load_channels = call.store_channels = smaller(kChannelBlock, channels_out - channel);
    call.window = params.window;
    call.activation = params.activation;
    if (params.row_sums != nullptr) {
      const Layout sums = row_sums_layout(channels_out, params.height_out);
      call.row_sums_stride = sums.pixel;
      call.row_sums = params.row_sums + image * sums.image + first_row * sums.pixel + channel;
    }
    if (params.multiplier > 1) {
      multiplied_rows(params, call, x, channel, scratch);
      continue;
    }
    call.x = {x + block * from.block, params.width * from.pixel, from.pixel, 0, 0, params.height};
    depthwise_block(call);
  }
}

// Few rows at a time, all channels of them: x comes from memory once, its lines are used whole.
FASTDW_INLINE int64_t rows_at_once(const DepthwiseParams& params) {
  const int64_t row_floats = params.width * params.channels_in * params.window.stride_h;
  return larger(2, kCacheFloats / 2 / larger(1, row_floats));
}

void run_depthwise_conv(const DepthwiseParams& params, int64_t begin, int64_t end,
                        float* scratch) {
  const int64_t at_once = rows_at_once(params);
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / params.height_out, row = unit % params.height_out;
    const int64_t rows = smaller(at_once, smaller(end - unit, params.height_out - row));
    depthwise_image_rows(params, image, row, row + rows, scratch);
    unit += rows;
  }
}

void describe_depthwise_conv(const DepthwiseParams& params, int64_t, int64_t,
                             const Notes& notes) {
  notes.add(notes.to, "rows_at_once", rows_at_once(params));
  notes.add(notes.to, "ring_floats", depthwise_conv_scratch(params));
}

}  // namespace
}  // namespace fastdw
