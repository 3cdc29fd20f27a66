// How a block is cut so that its hidden tensor stays in the L2 cache (half of it is for weights): a
// band of output rows is expanded, filtered and projected before the next one starts. The user may
// have chosen otherwise (FASTDW_BLOCKING).
#pragma once

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

constexpr int64_t kCacheFloats = (512 << 10) / sizeof(float);  // half of a 1 MiB L2

// Rows of x under `rows` rows of y.
FASTDW_INLINE int64_t rows_under(const Window& window, int64_t rows) {
  return (rows - 1) * window.stride_h + (window.kernel_h - 1) * window.dilation_h + 1;
}

struct BlockBlocking {
  int64_t band_rows;        // output rows of a band
  int64_t ring_rows;        // hidden rows held, of `height`
  int64_t chunk_blocks;     // hidden blocks (of 16 channels) expanded before they are filtered
  int64_t slab_blocks;      // hidden blocks that keep their rows from band to band
  int64_t slab_floats;      // expanded rows
  int64_t filtered_floats;  // depthwise output of a band, all hidden channels
  int64_t input_floats;     // the band's rows of x in blocks of 16 channels
};

// Bands grow until the rows held for all hidden channels no longer fit. When a single band covers
// `rows`, nothing is carried over: the expanded rows of one chunk serve after one another.
FASTDW_INLINE BlockBlocking block_blocking(const InvertedResidualParams& params, int64_t rows) {
  const int64_t hidden_blocks = channel_blocks(params.channels_hidden);
  const int64_t hidden_row = params.has_expand ? params.width * kChannelBlock : 0;
  const int64_t filtered_row = params.width_out * kChannelBlock;
  auto cut = [&](int64_t band) {
    BlockBlocking cut{};
    const bool single = band >= rows;
    cut.band_rows = band;
    cut.ring_rows = smaller(params.height, rows_under(params.window, band));
    cut.chunk_blocks = params.chunk_blocks != 0 ? params.chunk_blocks : single ? 4 : kTileBlocks;
    cut.chunk_blocks = smaller(hidden_blocks, cut.chunk_blocks);
    cut.slab_blocks = single ? cut.chunk_blocks : hidden_blocks;
    cut.slab_floats = cut.slab_blocks * cut.ring_rows * hidden_row;
    cut.filtered_floats = params.has_project ? hidden_blocks * band * filtered_row : 0;
    const bool copies_input = params.has_expand && !params.x_layout.is_blocked();
    cut.input_floats =
        copies_input ? channel_blocks(params.channels_in) * cut.ring_rows * hidden_row : 0;
    return cut;
  };
  if (params.band_rows != 0) return cut(params.band_rows);
  const BlockBlocking whole = cut(rows);
  if (whole.slab_floats + whole.filtered_floats <= kCacheFloats) return whole;
  BlockBlocking best = cut(1);
  for (int64_t band = 2; band < rows; ++band) {
    const BlockBlocking larger_band = cut(band);
    if (larger_band.slab_floats + larger_band.filtered_floats > kCacheFloats) break;
    best = larger_band;
  }
  return best;
}

}  // namespace
}  // namespace fastdw
