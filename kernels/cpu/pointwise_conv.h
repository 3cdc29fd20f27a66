// y[p, o] = act(bias[o] + sum_c w[o][c] (gate[c]) x[p, c]) + residual[p, o]: a matrix product over
// pixels. A stretch of NHWC pixels is brought into blocks of 16 channels, then met by one panel of
// weights after the other; blocked pixels are read where they are, unless a gate multiplies them:
// a stretch is then multiplied once and stays in the L2 cache.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

FASTDW_INLINE int64_t stretch_pixels(const PointwiseParams& params) {
  const int64_t pixel_floats = channel_blocks(params.channels_in) * kChannelBlock;
  const int64_t tiles = kCacheFloats / 2 / (pixel_floats * kTileRows);
  return larger(1, smaller(tiles, ceil_div(params.pixels, kTileRows))) * kTileRows;
}

int64_t stretch_floats(const PointwiseParams& params) {
  if (params.x_layout.is_blocked() && !params.has_gate) return 0;
  return channel_blocks(params.channels_in) * kChannelBlock * stretch_pixels(params);
}

int64_t pointwise_conv_scratch(const PointwiseParams& params) {
  const int64_t bias = params.bias_image != 0 ? channel_blocks(params.channels_out) : 0;
  return stretch_floats(params) + bias * kChannelBlock;
}

// The bias of an image. The product reads whole blocks, and a value of the plan ends with its last
// channel: it is copied into `blocks`.
const float* bias_of(const PointwiseParams& params, int64_t image, float* blocks) {
  if (params.bias_image == 0) return params.weights.bias;
  const float* bias = params.weights.bias + image * params.bias_image;
  for (int64_t channel = 0; channel < params.channels_out; ++channel)
    blocks[channel] = bias[channel];
  return blocks;
}

// block_pixels() of x times the gates of its channels.
void gate_pixels(const float* x, const float* gate, Layout layout, int64_t pixels,
                 int64_t channels, float* blocks, int64_t block_stride) {
  for (int64_t first = 0; first < channels; first += kChannelBlock) {
    const int64_t end = smaller(kChannelBlock, channels - first);
    for (int64_t lane = 0; lane < end; lane += Vec::lanes) {
      const int64_t count = smaller(Vec::lanes, end - lane);
      const float* from = x + first / kChannelBlock * layout.block + lane;
      float* to = blocks + first / kChannelBlock * block_stride + lane;
      if (count == Vec::lanes) {
        const Vec factor = Vec::load(gate + first + lane);
        for (int64_t pixel = 0; pixel < pixels; ++pixel, from += layout.pixel, to += kChannelBlock)
          (Vec::load(from) * factor).store(to);
      } else {
        const Vec factor = Vec::load(gate + first + lane, count);
        for (int64_t pixel = 0; pixel < pixels; ++pixel, from += layout.pixel, to += kChannelBlock)
          (Vec::load(from, count) * factor).store(to);
      }
    }
  }
}

// A rectangle of the result: pixels of one image by blocks of 16 output channels.
struct PointwisePart {
  int64_t image, first_pixel, last_pixel, first_block, last_block;
};

void pointwise_part(const PointwiseParams& params, const PointwisePart& part, float* scratch) {
  const Layout &from = params.x_layout, &to = params.y_layout, &added = params.residual_layout;
  const int64_t stretch = stretch_pixels(params);
  const float* bias = bias_of(params, part.image, scratch + stretch_floats(params));
  for (int64_t pixel = part.first_pixel; pixel < part.last_pixel; pixel += stretch) {
    const int64_t pixels = smaller(stretch, part.last_pixel - pixel);
    const float* x = params.x + part.image * from.image + pixel * from.pixel;
    Gemm call{};
    call.a = x;
    call.a_block = from.block;
    if (!from.is_blocked() || params.has_gate) {
      call.a = scratch;
      call.a_block = pixels * kChannelBlock;
    }
    if (params.has_gate)
      gate_pixels(x, params.gate + part.image * params.channels_in, from, pixels,
                  params.channels_in, scratch, call.a_block);
    else if (!from.is_blocked())
      block_pixels(x, from, pixels, params.channels_in, scratch, call.a_block);
    call.weights = params.weights;
    call.weights.bias = bias;
    call.depth = params.channels_in;
    call.channels_out = params.channels_out;
    call.first_block = part.first_block;
    call.last_block = part.last_block;
    if (params.residual != nullptr)
      call.residual = params.residual + part.image * added.image + pixel * added.pixel;
    call.residual_pixel = added.pixel;
    call.residual_block = added.block;
    call.c = params.y + part.image * to.image + pixel * to.pixel;
    call.c_pixel = to.pixel;
    call.c_block = to.block;
    call.pixels = pixels;
    call.activation = params.activation;
    gemm(call);
  }
}

void run_pointwise_conv(const PointwiseParams& params, int64_t begin, int64_t end,
                        float* scratch) {
  const int64_t blocks = channel_blocks(params.channels_out);
  const int64_t units = params.splits_channels() ? blocks : params.pixels;  // of an image
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / units, first = unit % units;
    const int64_t last = smaller(first + end - unit, units);
    if (params.splits_channels())
      pointwise_part(params, {image, 0, params.pixels, first, last}, scratch);
    else
      pointwise_part(params, {image, first, last, 0, blocks}, scratch);
    unit += last - first;
  }
}

void describe_pointwise_conv(const PointwiseParams& params, int64_t, int64_t,
                             const Notes& notes) {
  notes.add(notes.to, "stretch_pixels", stretch_pixels(params));
  notes.add(notes.to, "tile_pixels", kTileRows);
  notes.add(notes.to, "tile_channels", kTileBlocks * kChannelBlock);
  notes.add(notes.to, "input_floats", stretch_floats(params));
}

}  // namespace
}  // namespace fastdw
