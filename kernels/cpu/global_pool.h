// y[n, c] = sum_p x[n, p, c] / divisor, 16 channels at a time.
#pragma once

#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

int64_t global_pool_scratch(const GlobalPoolParams&) { return 0; }

FASTDW_INLINE Vec sum_of_pixels(const float* x, int64_t pixels, int64_t stride, int64_t count) {
  constexpr int chains = 4;  // sums that do not wait for one another
  Vec sum[chains];
  FASTDW_UNROLL for (int c = 0; c < chains; ++c) sum[c] = Vec::fill(0.0f);
  auto add = [&](int c, int64_t pixel) {
    const float* at = x + pixel * stride;
    sum[c] = sum[c] + (count == Vec::lanes ? Vec::load(at) : Vec::load(at, count));
  };
  int64_t pixel = 0;
  for (; pixel + chains <= pixels; pixel += chains)
    FASTDW_UNROLL for (int c = 0; c < chains; ++c) add(c, pixel + c);
  for (; pixel < pixels; ++pixel) add(0, pixel);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void run_global_pool(const GlobalPoolParams& params, int64_t begin, int64_t end, float*) {
  const int64_t blocks = channel_blocks(params.channels);
  const Vec divisor = Vec::fill(static_cast<float>(params.divisor));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / blocks, first = unit % blocks * kChannelBlock;
    const int64_t last = smaller(first + kChannelBlock, params.channels);
    for (int64_t c = first; c < last; c += Vec::lanes) {
      const int64_t count = smaller(Vec::lanes, last - c);
      const Layout& layout = params.x_layout;
      const float* x = params.x + image * layout.image + c - first;
      x += first / kChannelBlock * layout.block;
      float* y = params.y + image * params.channels + c;
      const Vec mean = sum_of_pixels(x, params.pixels, layout.pixel, count) / divisor;
      count == Vec::lanes ? mean.store(y) : mean.store(y, count);
    }
  }
}

void describe_global_pool(const GlobalPoolParams&, int64_t, int64_t, const Notes&) {}

}  // namespace
}  // namespace fastdw
