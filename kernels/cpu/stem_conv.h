// y[n, r, q, o] = act(bias[o] + sum_{c,i,j} w[o][c][i][j] x[n, c, r s - top + i, q s - left + j])
// Dense, few input channels; x is the user's image, planes (NCHW) or interleaved (NHWC). A tile of
// kTileRows output columns broadcasts straight from the rows of x, no im2col; only the tiles at the
// left and right edge read a copy with the padding. One segment of a row: kernel_w * inner values
// that lie side by side, inner = 1 for planes (a segment per channel), channels for NHWC.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

constexpr int64_t kPointerFloats = sizeof(const float*) / sizeof(float);

// How the values of x lie for a tile.
struct StemSegments {
  int64_t inner;        // values of one pixel that lie side by side
  int64_t planes;       // segments per row of x
  int64_t count;        // segments under one output row
  int64_t step;         // values from one output column to the next
  int64_t tile_floats;  // values of one segment that a tile of kTileRows columns reads
  int64_t row_floats;   // of one row of one plane of x

  explicit StemSegments(const StemParams& params)
      : inner(params.channels_last ? params.channels_in : 1),
        planes(params.channels_last ? 1 : params.channels_in),
        count(planes * params.window.kernel_h),
        step(params.width_out > 1 ? params.window.stride_w * inner : 0),
        tile_floats((kTileRows - 1) * step + params.window.kernel_w * inner),
        row_floats(params.width * inner) {}
};

// Two tables of pointers, aligned, and the copies of one tile.
int64_t stem_conv_scratch(const StemParams& params) {
  const StemSegments segments(params);
  return (2 * segments.count + 1) * kPointerFloats + segments.count * segments.tile_floats;
}

struct StemTile {
  const float* const* segments;  // [planes][kernel_h]
  int64_t offset;                // of the tile's first value in each
  int64_t step, inner, planes, kernel_h, kernel_w;
  const float* panels;
  int64_t panel;  // floats from one panel to the next
  const float* bias;
  float* y;
  int64_t y_pixel, y_block;
  int64_t columns, channels;  // to store
  Clamp bounds;
};

// Step 0: the step is known at run time only. Planes: inner is 1.
template <int Step, bool Planes, int Blocks>
__attribute__((noinline)) void stem_tile(const StemTile& tile) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block;
  auto at = [](int v, int64_t block) { return v / per_block * block + v % per_block * Vec::lanes; };
  const int64_t step = Step > 0 ? Step : tile.step;
  Vec sum[kTileRows][vectors];
  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    const Vec start = Vec::load(tile.bias + v * Vec::lanes);
    FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q) sum[q][v] = start;
  }
  const int64_t channel_taps = tile.kernel_h * tile.kernel_w * kChannelBlock;
  const float* taps = tile.panels;
  for (int64_t segment = 0; segment < tile.planes * tile.kernel_h; ++segment) {
    const float* x = tile.segments[segment] + tile.offset;
    FASTDW_NO_UNROLL for (int64_t j = 0; j < tile.kernel_w; ++j, taps += kChannelBlock) {
      const float* weights = taps;
      FASTDW_NO_UNROLL for (int64_t c = Planes ? 1 : tile.inner; c > 0; --c, ++x) {
        // Neighbouring taps share values of x. GCC would keep them from step to step, in registers
        // that it does not have (predictive commoning), and spill the sums.
        asm("" : "+r"(x));
        Vec weight[vectors];
        FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
          weight[v] = Vec::load(weights + at(v, tile.panel));
        FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q) {
          const Vec pixel = Vec::broadcast(x + q * step);
          FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
            sum[q][v] = fma(pixel, weight[v], sum[q][v]);
        }
        weights += channel_taps;
      }
    }
  }
  const VecClamp clamped(tile.bounds);
  auto store = [&](int v, int64_t columns, auto store_vector) __attribute__((always_inline)) {
    float* y = tile.y + at(v, tile.y_block);
    FASTDW_UNROLL for (int q = 0; q < kTileRows; ++q)
      if (q < columns) store_vector(clamped(sum[q][v]), y + q * tile.y_pixel);
  };
  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    const int64_t count = tile.channels - v * Vec::lanes;
    const auto whole = [](Vec value, float* y) { value.store(y); };
    const auto part = [&](Vec value, float* y) { value.store(y, count); };
    if (count >= Vec::lanes && tile.columns == kTileRows) store(v, kTileRows, whole);
    else if (count >= Vec::lanes) store(v, tile.columns, whole);
    else if (count > 0) store(v, tile.columns, part);
  }
}

template <int Blocks>
FASTDW_INLINE void stem_tile_of(const StemTile& tile) {
  if (tile.inner == 1) {
    switch (tile.step) {
      case 1: return stem_tile<1, true, Blocks>(tile);
      case 2: return stem_tile<2, true, Blocks>(tile);
      default: return stem_tile<0, true, Blocks>(tile);
    }
  }
  switch (tile.step) {  // three channels at stride 1 and 2
    case 3: return stem_tile<3, false, Blocks>(tile);
    case 6: return stem_tile<6, false, Blocks>(tile);
    default: return stem_tile<0, false, Blocks>(tile);
  }
}

struct StemConv {
  const StemParams& params;
  StemSegments segments;
  const float **rows, **edge_rows;
  float* edge;

  StemConv(const StemParams& stem_params, float* scratch)
      : params(stem_params), segments(stem_params) {
    const uintptr_t size = sizeof(const float*);  // scratch may have any alignment
    const uintptr_t address = (reinterpret_cast<uintptr_t>(scratch) + size - 1) / size * size;
    rows = reinterpret_cast<const float**>(address);
    edge_rows = rows + segments.count;
    edge = reinterpret_cast<float*>(edge_rows + segments.count);
    for (int64_t segment = 0; segment < segments.count; ++segment)
      edge_rows[segment] = edge + segment * segments.tile_floats;
  }

  // Row `row` of image x, blocks [block, last_block); column 0 of `block` goes to y.
  void output_row(const float* x, int64_t row, int64_t block, int64_t last_block, float* y,
                  Layout layout, int64_t channels_stored) const {
    const bool smooth = !is_clamp(params.activation);
    const bool all_inside = find_rows(x, row);
    StemTile tile = first_tile(layout, smooth ? Activation::none : params.activation);
    const int64_t left = params.window.pad_left * segments.inner;
    tile.columns = smaller(kTileRows, params.width_out);
    for (int64_t next = 0; next < params.width_out; next += kTileRows) {
      const int64_t column = smaller(next, params.width_out - tile.columns);  // the last overlaps
      tile.offset = column * segments.step - left;
      tile.segments = rows;
      const bool reads_inside = all_inside && tile.offset >= 0 &&
                                tile.offset + segments.tile_floats <= segments.row_floats;
      if (!reads_inside) {
        copy_edge(tile.offset);
        tile.segments = edge_rows;
        tile.offset = 0;
      }
      for (int64_t first = block; first < last_block; first += kTileBlocks) {
        const int64_t blocks = smaller(kTileBlocks, last_block - first);
        tile.panels = params.weights.panels + first * tile.panel;
        tile.bias = params.weights.bias + first * kChannelBlock;
        tile.channels = smaller(blocks * kChannelBlock, channels_stored - first * kChannelBlock);
        tile.y = y + column * layout.pixel + (first - block) * layout.block;
        if (blocks == kTileBlocks) stem_tile_of<kTileBlocks>(tile);
        else stem_tile_of<1>(tile);
      }
    }
    if (!smooth) return;
    for (int64_t b = block; b < last_block; ++b)
      finish(params.activation, y + (b - block) * layout.block, layout.pixel, nullptr, 0,
             params.width_out, smaller(kChannelBlock, channels_stored - b * kChannelBlock));
  }

  StemTile first_tile(Layout layout, Activation activation) const {
    StemTile tile{};
    tile.step = segments.step;
    tile.inner = segments.inner;
    tile.planes = segments.planes;
    tile.kernel_h = params.window.kernel_h;
    tile.kernel_w = params.window.kernel_w;
    tile.panel = params.channels_in * tile.kernel_h * tile.kernel_w * kChannelBlock;
    tile.y_pixel = layout.pixel;
    tile.y_block = layout.block;
    tile.bounds = clamp_of(activation);
    return tile;
  }

  // Where the segments under an output row begin; null above and below the image. Returns whether
  // none is.
  bool find_rows(const float* x, int64_t row) const {
    const int64_t kernel_h = params.window.kernel_h;
    const int64_t top = row * params.window.stride_h - params.window.pad_top;
    for (int64_t plane = 0; plane < segments.planes; ++plane)
      for (int64_t i = 0; i < kernel_h; ++i) {
        const bool inside = top + i >= 0 && top + i < params.height;
        const float* from = x + (plane * params.height + top + i) * segments.row_floats;
        rows[plane * kernel_h + i] = inside ? from : nullptr;
      }
    return top >= 0 && top + kernel_h <= params.height;
  }

  // The values [offset, offset + tile_floats) of every segment, zero outside the image.
  void copy_edge(int64_t offset) const {
    const int64_t from = smaller(larger(0, -offset), segments.tile_floats);
    const int64_t to = larger(from, smaller(segments.tile_floats, segments.row_floats - offset));
    for (int64_t segment = 0; segment < segments.count; ++segment) {
      float* copy = edge + segment * segments.tile_floats;
      const bool inside = rows[segment] != nullptr;
      for (int64_t i = 0; i < segments.tile_floats; ++i) copy[i] = 0.0f;
      for (int64_t i = from; inside && i < to; ++i) copy[i] = rows[segment][offset + i];
    }
  }
};

void run_stem_conv(const StemParams& params, int64_t begin, int64_t end, float* scratch) {
  const StemConv stem(params, scratch);
  const Layout& layout = params.y_layout;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / params.height_out, row = unit % params.height_out;
    const float* x = params.x + image * params.channels_in * params.height * params.width;
    float* y = params.y + image * layout.image + row * params.width_out * layout.pixel;
    stem.output_row(x, row, 0, channel_blocks(params.channels_out), y, layout,
                    params.channels_out);
  }
}

void describe_stem_conv(const StemParams& params, int64_t, int64_t, const Notes& notes) {
  notes.add(notes.to, "tile_pixels", kTileRows);
  notes.add(notes.to, "tile_channels", kTileBlocks * kChannelBlock);
  notes.add(notes.to, "edge_floats", stem_conv_scratch(params));
}

}  // namespace
}  // namespace fastdw
