// y[n, o] = bias[o] + sum_k w[o][k] x[n, k]. One row: many panels side by side, so that the sums do
// not wait for one another; more rows: the matrix product.
#pragma once

#include "kernels/cpu/gemm.h"

namespace fastdw {
namespace {

int64_t linear_scratch(const LinearParams& params) {
  if (params.batch == 1) return 0;
  return channel_blocks(params.channels_in) * kChannelBlock * params.batch;
}

void linear_one_row(const LinearParams& params, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end;) {
    GemmTile tile{};
    tile.a = params.x;
    tile.a_block = kChannelBlock;
    tile.depth = params.channels_in;
    tile.b_panel = params.channels_in * kChannelBlock;
    tile.b = params.weights.panels + block * tile.b_panel;
    tile.bias = params.weights.bias + block * kChannelBlock;
    tile.c = params.y + block * kChannelBlock;
    tile.c_block = kChannelBlock;
    tile.bounds = clamp_of(Activation::none);
    const bool wide = end - block >= kLinearBlocks;
    const int64_t blocks = wide ? kLinearBlocks : 1;
    tile.channels = smaller(blocks * kChannelBlock, params.channels_out - block * kChannelBlock);
    (wide ? gemm_tile<1, kLinearBlocks> : gemm_tile<1, 1>)(tile);
    block += blocks;
  }
}

void run_linear(const LinearParams& params, int64_t begin, int64_t end, float* scratch) {
  if (params.batch == 1) return linear_one_row(params, begin, end);
  Gemm call{};
  call.a = scratch;
  call.a_block = params.batch * kChannelBlock;
  block_pixels(params.x, params.batch, params.channels_in, scratch, call.a_block);
  call.weights = params.weights;
  call.depth = params.channels_in;
  call.channels_out = params.channels_out;
  call.first_block = begin;
  call.last_block = end;
  call.c = params.y;
  call.c_row = params.channels_out;
  call.c_block = kChannelBlock;
  call.pixels = params.batch;
  call.activation = Activation::none;
  gemm(call);
}

}  // namespace
}  // namespace fastdw
