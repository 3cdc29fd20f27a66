// y[n, r, q, o] = act(bias[o] + sum_{c,i,j} w[o][c][i][j] x[n, c, r s - top + i, q s - left + j])
// Dense, few input channels; x is the user's image, planes (NCHW) or interleaved (NHWC). Each row
// of x is copied once, with its padding, into a ring of kernel_h rows; a tile of kTileRows output
// columns then broadcasts straight from there, no im2col. One segment of a row: kernel_w * inner
// values that lie side by side, inner = 1 for planes (a segment per channel), channels for NHWC.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct StemRows {
  int64_t inner;         // values of one pixel that lie side by side
  int64_t planes;        // segments per row of x
  int64_t row_floats;    // one padded row of one plane
  int64_t step;          // values from one output column to the next

  explicit StemRows(const StemParams& params)
      : inner(params.channels_last ? params.channels_in : 1),
        planes(params.channels_last ? 1 : params.channels_in) {
    // The last tile reads as if it were whole.
    const int64_t columns = ceil_div(params.width_out, kTileRows) * kTileRows;
    const int64_t read = (columns - 1) * params.window.stride_w + params.window.kernel_w;
    row_floats = larger(read, params.window.pad_left + params.width) * inner;
    step = params.window.stride_w * inner;
  }
};

constexpr int64_t kPointerFloats = sizeof(const float*) / sizeof(float);

FASTDW_INLINE int64_t segment_table_floats(int64_t segments) {
  return (segments + 1) * kPointerFloats;  // one more, to align it
}

// The table's place: the first aligned one at or after `scratch`.
FASTDW_INLINE const float** segment_table(float* scratch) {
  const uintptr_t size = sizeof(const float*);
  const uintptr_t address = reinterpret_cast<uintptr_t>(scratch);
  return reinterpret_cast<const float**>((address + size - 1) / size * size);
}

int64_t stem_conv_scratch(const StemParams& params) {
  const StemRows rows(params);
  const int64_t segments = params.window.kernel_h * rows.planes;
  return (segments + 1) * rows.row_floats + segment_table_floats(segments);  // one row of zeros
}

struct StemTile {
  const float* const* rows;  // [planes][kernel_h]
  int64_t column, step, inner, planes, kernel_h, kernel_w;
  const float* panels;
  int64_t panel;  // floats from one panel to the next
  const float* bias;
  float* y;
  int64_t channels_out;         // floats from one output column to the next
  int64_t columns, channels;    // to store
  Clamp bounds;
};

// Step 0: the step is known at run time only.
template <int Step, int Blocks>
__attribute__((noinline)) void stem_tile(const StemTile& tile) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block;
  const int64_t step = Step > 0 ? Step : tile.step;
  Vec sum[kTileRows][vectors];
  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    const Vec start = Vec::load(tile.bias + v * Vec::lanes);
    FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q) sum[q][v] = start;
  }
  const int64_t channel_taps = tile.kernel_h * tile.kernel_w * kChannelBlock;
  for (int64_t segment = 0; segment < tile.planes * tile.kernel_h; ++segment) {
    const float* x = tile.rows[segment] + tile.column * step;
    const float* taps = tile.panels + segment * tile.kernel_w * kChannelBlock;
    FASTDW_NO_UNROLL for (int64_t j = 0; j < tile.kernel_w; ++j, taps += kChannelBlock) {
      const float* weights = taps;
      FASTDW_NO_UNROLL for (int64_t c = 0; c < tile.inner; ++c, ++x, weights += channel_taps) {
        Vec weight[vectors];
        FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
          weight[v] =
              Vec::load(weights + (v / per_block) * tile.panel + v % per_block * Vec::lanes);
        FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q) {
          const Vec pixel = Vec::broadcast(x + q * step);
          FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
            sum[q][v] = fma(pixel, weight[v], sum[q][v]);
        }
      }
    }
  }
  const VecClamp clamped(tile.bounds);
  const int64_t columns = tile.columns, channels_out = tile.channels_out;
  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    float* y = tile.y + v * Vec::lanes;
    const int64_t count = tile.channels - v * Vec::lanes;
    if (count >= Vec::lanes) {
      FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q)
        if (q < columns) clamped(sum[q][v]).store(y + q * channels_out);
    } else if (count > 0) {
      FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q)
        if (q < columns) clamped(sum[q][v]).store(y + q * channels_out, count);
    }
  }
}

template <int Blocks>
FASTDW_INLINE void stem_tile_of(const StemTile& tile) {
  switch (tile.step) {  // 1 and 2: planes at stride 1 and 2; 3 and 6: three interleaved channels
    case 1: return stem_tile<1, Blocks>(tile);
    case 2: return stem_tile<2, Blocks>(tile);
    case 3: return stem_tile<3, Blocks>(tile);
    case 6: return stem_tile<6, Blocks>(tile);
    default: return stem_tile<0, Blocks>(tile);
  }
}

struct StemConv {
  const StemParams& params;
  StemRows rows;
  float *ring, *zeros;

  // Ring layout: [slot][plane][row_floats].
  void copy_row(const float* image, int64_t row) const {
    const int64_t left = params.window.pad_left * rows.inner;
    const int64_t count = params.width * rows.inner;
    for (int64_t plane = 0; plane < rows.planes; ++plane) {
      float* to = ring_row(row, plane);
      const float* from = image + (plane * params.height + row) * count;
      for (int64_t i = 0; i < left; ++i) to[i] = 0.0f;
      __builtin_memcpy(to + left, from, static_cast<size_t>(count) * sizeof(float));
      for (int64_t i = left + count; i < rows.row_floats; ++i) to[i] = 0.0f;
    }
  }

  float* ring_row(int64_t row, int64_t plane) const {
    const int64_t slot = row % params.window.kernel_h;
    return ring + (slot * rows.planes + plane) * rows.row_floats;
  }

  void output_row(const float* const* segments, float* y) const {
    const bool smooth = !is_clamp(params.activation);
    StemTile tile{};
    tile.rows = segments;
    tile.step = rows.step;
    tile.inner = rows.inner;
    tile.planes = rows.planes;
    tile.kernel_h = params.window.kernel_h;
    tile.kernel_w = params.window.kernel_w;
    tile.panel = params.channels_in * tile.kernel_h * tile.kernel_w * kChannelBlock;
    tile.channels_out = params.channels_out;
    tile.bounds = clamp_of(smooth ? Activation::none : params.activation);
    const int64_t last_block = channel_blocks(params.channels_out);
    for (int64_t block = 0; block < last_block; block += kTileBlocks) {
      const int64_t blocks = smaller(kTileBlocks, last_block - block);
      tile.panels = params.weights.panels + block * tile.panel;
      tile.bias = params.weights.bias + block * kChannelBlock;
      tile.channels =
          smaller(blocks * kChannelBlock, params.channels_out - block * kChannelBlock);
      for (tile.column = 0; tile.column < params.width_out; tile.column += kTileRows) {
        tile.columns = smaller(kTileRows, params.width_out - tile.column);
        tile.y = y + tile.column * params.channels_out + block * kChannelBlock;
        if (blocks == kTileBlocks) stem_tile_of<kTileBlocks>(tile);
        else stem_tile_of<1>(tile);
      }
    }
    if (smooth)
      finish(params.activation, y, nullptr, params.width_out, params.channels_out,
             params.channels_out);
  }
};

void run_stem_conv(const StemParams& params, int64_t begin, int64_t end, float* scratch) {
  const StemRows rows(params);
  const int64_t kernel_h = params.window.kernel_h;
  float* zeros = scratch + kernel_h * rows.planes * rows.row_floats;
  for (int64_t i = 0; i < rows.row_floats; ++i) zeros[i] = 0.0f;
  const StemConv stem{params, rows, scratch, zeros};
  const float** segments = segment_table(zeros + rows.row_floats);
  int64_t image_copied = -1, copied = 0;  // rows of x before `copied` are in the ring or past
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / params.height_out, row = unit % params.height_out;
    const float* x = params.x + image * params.channels_in * params.height * params.width;
    const int64_t top = row * params.window.stride_h - params.window.pad_top;
    if (image != image_copied) copied = 0;
    image_copied = image;
    copied = larger(copied, larger(0, top));
    for (; copied < smaller(top + kernel_h, params.height); ++copied) stem.copy_row(x, copied);
    for (int64_t plane = 0; plane < rows.planes; ++plane)
      for (int64_t i = 0; i < kernel_h; ++i) {
        const bool inside = top + i >= 0 && top + i < params.height;
        segments[plane * kernel_h + i] = inside ? stem.ring_row(top + i, plane) : zeros;
      }
    stem.output_row(segments, params.y + unit * params.width_out * params.channels_out);
  }
}

}  // namespace
}  // namespace fastdw
