// y[p, first_out + i step_out] = x[p, first_in + i]: a part of a concatenation that cannot be
// written in its place, a slice, or, with a step, what a channel shuffle makes of one group. Runs
// of channels that lie in one block of x and of y go through all pixels.
#pragma once

#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

int64_t copy_channels_scratch(const CopyChannelsParams&) { return 0; }

void copy_run(const float* x, int64_t x_pixel, float* y, int64_t y_pixel, int64_t pixels,
              int64_t channels, int64_t step) {
  if (step > 1) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, x += x_pixel, y += y_pixel)
      for (int64_t channel = 0; channel < channels; ++channel) y[channel * step] = x[channel];
    return;
  }
  for (int64_t lane = 0; lane < channels; lane += Vec::lanes) {
    const int64_t count = smaller(Vec::lanes, channels - lane);
    const float* from = x + lane;
    float* to = y + lane;
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += x_pixel, to += y_pixel) {
      if (count == Vec::lanes) Vec::load(from).store(to);
      else Vec::load(from, count).store(to, count);
    }
  }
}

void run_copy_channels(const CopyChannelsParams& params, int64_t begin, int64_t end, float*) {
  const Layout &from = params.x_layout, &to = params.y_layout;
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / params.pixels, pixel = unit % params.pixels;
    const int64_t pixels = smaller(end - unit, params.pixels - pixel);
    const float* x = params.x + image * from.image + pixel * from.pixel;
    float* y = params.y + image * to.image + pixel * to.pixel;
    for (int64_t done = 0; done < params.channels;) {
      const int64_t in = params.first_in + done;
      const int64_t out = params.first_out + done * params.step_out;
      const int64_t in_lane = in % kChannelBlock, out_lane = out % kChannelBlock;
      const int64_t fits = smaller(kChannelBlock - in_lane,
                                   ceil_div(kChannelBlock - out_lane, params.step_out));
      const int64_t channels = smaller(fits, params.channels - done);
      copy_run(x + in / kChannelBlock * from.block + in_lane, from.pixel,
               y + out / kChannelBlock * to.block + out_lane, to.pixel, pixels, channels,
               params.step_out);
      done += channels;
    }
    unit += pixels;
  }
}

void describe_copy_channels(const CopyChannelsParams&, int64_t, int64_t, const Notes&) {}

}  // namespace
}  // namespace fastdw
