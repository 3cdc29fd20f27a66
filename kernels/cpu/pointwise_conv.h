// y[p, o] = act(bias[o] + sum_c w[o][c] x[p, c]) + residual[p, o]: a matrix product over pixels.
// A stretch of pixels is brought into blocks of 16 channels, then met by one panel of weights after
// the other.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/gemm.h"

namespace fastdw {
namespace {

FASTDW_INLINE int64_t stretch_pixels(const PointwiseParams& params) {
  const int64_t pixel_floats = channel_blocks(params.channels_in) * kChannelBlock;
  const int64_t tiles = kCacheFloats / 2 / (pixel_floats * kTileRows);
  return larger(1, smaller(tiles, ceil_div(params.pixels, kTileRows))) * kTileRows;
}

int64_t pointwise_conv_scratch(const PointwiseParams& params) {
  return channel_blocks(params.channels_in) * kChannelBlock * stretch_pixels(params);
}

void run_pointwise_conv(const PointwiseParams& params, int64_t begin, int64_t end,
                        float* scratch) {
  const int64_t stretch = stretch_pixels(params);
  for (int64_t pixel = begin; pixel < end; pixel += stretch) {
    const int64_t pixels = smaller(stretch, end - pixel);
    const int64_t a_block = pixels * kChannelBlock;
    block_pixels(params.x + pixel * params.channels_in, pixels, params.channels_in, scratch,
                 a_block);
    Gemm call{};
    call.a = scratch;
    call.a_block = a_block;
    call.weights = params.weights;
    call.depth = params.channels_in;
    call.channels_out = params.channels_out;
    call.last_block = channel_blocks(params.channels_out);
    call.residual =
        params.residual != nullptr ? params.residual + pixel * params.channels_out : nullptr;
    call.c = params.y + pixel * params.channels_out;
    call.c_row = params.channels_out;
    call.c_block = kChannelBlock;
    call.pixels = pixels;
    call.activation = params.activation;
    gemm(call);
  }
}

}  // namespace
}  // namespace fastdw
