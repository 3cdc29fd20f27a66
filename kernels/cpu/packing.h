// Writes convolution weights in the layout that the kernels read (kernels/params.h), with the
// batch-norm scale multiplied in. Source weights are contiguous, in torch's order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/params.h"

namespace fastdw {

// weight [channels_out][terms] -> panels [blocks][terms][16], the blocks [begin, end) of them.
// terms: channels_in of a 1x1 convolution, kernel_h * kernel_w of a depthwise one. scale may be
// null.
inline void pack_panels(const float* weight, const float* scale, int64_t channels_out,
                        int64_t terms, int64_t begin, int64_t end, float* panels) {
  for (int64_t block = begin; block < end; ++block) {
    float* panel = panels + block * terms * kChannelBlock;
    for (int64_t lane = 0; lane < kChannelBlock; ++lane) {
      const int64_t channel = block * kChannelBlock + lane;
      const bool exists = channel < channels_out;
      const float factor = exists && scale ? scale[channel] : 1.0f;
      const float* row = weight + channel * terms;
      for (int64_t term = 0; term < terms; ++term)
        panel[term * kChannelBlock + lane] = exists ? row[term] * factor : 0.0f;
    }
  }
}

// bias [channels] or null -> [blocks * 16], zero beyond channels.
inline void pack_bias(const float* bias, int64_t channels, float* packed) {
  const int64_t padded = channel_blocks(channels) * kChannelBlock;
  const int64_t copied = bias ? channels : 0;
  std::copy(bias, bias + copied, packed);
  std::fill(packed + copied, packed + padded, 0.0f);
}

}  // namespace fastdw
