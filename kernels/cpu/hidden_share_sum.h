// y = act(sum_s partial[s]) [+ x]: what the shares of a block's hidden channels have left, in the
// order of the shares. A block of 16 channels of an image is summed, then finished in the L1 cache.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

int64_t hidden_share_sum_scratch(const HiddenShareSumParams&) { return 0; }

// The sum of `shares` blocks of 16 channels, `stride` floats apart.
void sum_shares(const float* partial, int64_t shares, int64_t stride, int64_t pixels, float* y,
                int64_t y_pixel, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, partial += kChannelBlock, y += y_pixel)
    for (int64_t c = 0; c < channels; c += Vec::lanes) {
      Vec sum = Vec::load(partial + c);
      for (int64_t share = 1; share < shares; ++share)
        sum = sum + Vec::load(partial + share * stride + c);
      const int64_t count = smaller(Vec::lanes, channels - c);
      count == Vec::lanes ? sum.store(y + c) : sum.store(y + c, count);
    }
}

// One block of 16 output channels of an image.
void add_shares(const InvertedResidualParams& params, int64_t image, int64_t block) {
  const Layout &from = params.x_layout, &to = params.y_layout;
  const int64_t pixels = params.height_out * params.width_out;
  const int64_t channels = smaller(kChannelBlock, params.channels_out - block * kChannelBlock);
  const Layout partial = blocked_layout(params.channels_out, pixels);
  const float* sums = params.partial_sums + image * params.hidden_shares * partial.image;
  float* y = params.y + image * to.image + block * to.block;
  sum_shares(sums + block * partial.block, params.hidden_shares, partial.image, pixels, y, to.pixel,
             channels);
  const float* x = params.residual ? params.x + image * from.image + block * from.block : nullptr;
  if (x != nullptr || params.project_activation != Activation::none)
    finish(params.project_activation, y, to.pixel, x, from.pixel, pixels, channels);
}

void run_hidden_share_sum(const HiddenShareSumParams& params, int64_t begin, int64_t end, float*) {
  const int64_t blocks = channel_blocks(params.block.channels_out);
  for (int64_t unit = begin; unit < end; ++unit)
    add_shares(params.block, unit / blocks, unit % blocks);
}

void describe_hidden_share_sum(const HiddenShareSumParams&, int64_t, int64_t, const Notes&) {}

}  // namespace
}  // namespace fastdw
