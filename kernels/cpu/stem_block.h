// The stem and the block without expansion behind it (the first two layers of MobileNet V1 and V2)
// in one pass: the stem's rows fill the block's ring and never leave the cache.
#pragma once

#include "kernels/cpu/inverted_residual.h"
#include "kernels/cpu/stem_conv.h"

namespace fastdw {
namespace {

struct StemExpand {
  const StemConv& stem;
  const float* x = nullptr;

  void begin_image(int64_t image) {
    const StemParams& params = stem.params;
    x = params.x + image * params.channels_in * params.height * params.width;
  }

  void take_rows(int64_t, int64_t) {}

  void fill(const HiddenRows& rows) const {
    const StemParams& params = stem.params;
    const int64_t row_floats = params.width_out * kChannelBlock;
    const Layout layout{kChannelBlock, rows.block_stride, 0};
    const int64_t channels = channel_blocks(params.channels_out) * kChannelBlock;
    float* to = rows.to_row;
    for (int64_t row = rows.from; row < rows.to; ++row, to += row_floats)
      stem.output_row(x, row, rows.block, rows.last_block, to, layout, channels);
  }
};

void run_stem_block(const StemBlockParams& params, int64_t begin, int64_t end, float* scratch) {
  const BlockBlocking blocking = block_blocking(params.block, params.block.height_out);
  const StemConv stem(params.stem, scratch + blocking.slab_floats + blocking.filtered_floats);
  StemExpand expand{stem};
  run_block_bands(params.block, blocking, expand, begin, end, scratch);
}

int64_t stem_block_scratch(const StemBlockParams& params) {
  const BlockBlocking blocking = block_blocking(params.block, params.block.height_out);
  return blocking.slab_floats + blocking.filtered_floats + stem_conv_scratch(params.stem);
}

void describe_stem_block(const StemBlockParams& params, int64_t begin, int64_t end,
                         const Notes& notes) {
  describe_inverted_residual(params.block, begin, end, notes);
  notes.add(notes.to, "edge_floats", stem_conv_scratch(params.stem));
}

}  // namespace
}  // namespace fastdw
