// y[n, o] = act(bias[o] + sum_k w[o][k] x[n, k]). One row: many panels side by side, so that the sums do
// not wait for one another; more rows: the matrix product.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

int64_t linear_scratch(const LinearParams& params) {
  if (params.batch == 1) return 0;
  return channel_blocks(params.channels_in) * kChannelBlock * params.batch;
}

// The tile of one row by `blocks` panels, 1 <= blocks <= kLinearBlocks.
template <int Blocks = kLinearBlocks>
FASTDW_INLINE GemmTilesFunction one_row_tile_of(int64_t blocks) {
  if constexpr (Blocks == 1) {
    return gemm_tiles<1, 1>;
  } else {
    return blocks == Blocks ? gemm_tiles<1, Blocks> : one_row_tile_of<Blocks - 1>(blocks);
  }
}

void linear_one_row(const LinearParams& params, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end;) {
    // Groups as equal as they can be: one panel alone would wait for every product.
    const int64_t blocks = ceil_div(end - block, ceil_div(end - block, kLinearBlocks));
    GemmTiles tiles{};
    tiles.a = params.x;
    tiles.a_block = kChannelBlock;
    tiles.depth = params.channels_in;
    tiles.b_panel = params.channels_in * kChannelBlock;
    tiles.b = params.weights.panels + block * tiles.b_panel;
    tiles.bias = params.weights.bias + block * kChannelBlock;
    tiles.c = params.y + block * kChannelBlock;
    tiles.c_block = kChannelBlock;
    tiles.channels = smaller(blocks * kChannelBlock, params.channels_out - block * kChannelBlock);
    const bool smooth = !is_clamp(params.activation);
    tiles.bounds = clamp_of(smooth ? Activation::none : params.activation);
    tiles.smooth = Activation::none;
    tiles.count = 1;
    one_row_tile_of(blocks)(tiles);
    if (smooth) finish(params.activation, tiles.c, 0, nullptr, 0, 1, tiles.channels);
    block += blocks;
  }
}

void run_linear(const LinearParams& params, int64_t begin, int64_t end, float* scratch) {
  if (params.batch == 1) return linear_one_row(params, begin, end);
  Gemm call{};
  call.a = scratch;
  call.a_block = params.batch * kChannelBlock;
  block_pixels(params.x, nhwc_layout(params.channels_in, params.batch), params.batch,
               params.channels_in, scratch, call.a_block);
  call.weights = params.weights;
  call.depth = params.channels_in;
  call.channels_out = params.channels_out;
  call.first_block = begin;
  call.last_block = end;
  call.c = params.y;
  call.c_pixel = params.channels_out;
  call.c_block = kChannelBlock;
  call.pixels = params.batch;
  call.activation = params.activation;
  gemm(call);
}

void describe_linear(const LinearParams& params, int64_t, int64_t, const Notes& notes) {
  const bool one_row = params.batch == 1;
  notes.add(notes.to, "tile_pixels", one_row ? 1 : kTileRows);
  notes.add(notes.to, "tile_channels", (one_row ? kLinearBlocks : kTileBlocks) * kChannelBlock);
  notes.add(notes.to, "input_floats", linear_scratch(params));
}

}  // namespace
}  // namespace fastdw
