// y[r, q, o] = act(bias[o] + sum_{i,j,c} w[o][i][j][c] x[r s - top + i d, q s - left + j d, c])
// Dense, any number of input channels, without im2col: of a slab of rows a chunk of channels is
// copied into [channels / 16][row][column % s][column / s][16] with the padding; under a tile of
// output columns each tap then reads consecutive pixels of it. Panels outside, tiles inside; the
// chunks' sums stay in y. Dilated taps that miss the image are left out, tile by tile; where that
// leaves few columns to a tile it takes several lines.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/dense_tiles.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

// A pair of panels of so many K (512 KiB) comes from the L2 cache for every tile.
constexpr int64_t kDenseDepth = 4096;
constexpr int64_t kLeastChunkBlocks = 4;

// One axis of the window, and how a slab holds it. Where at least a tenth of the products would be
// with zeros the axis is cut: into stretches in which the same taps meet the image, no padding.
struct DenseAxis {
  int64_t size, size_out, kernel, stride, dilation, before;
  bool is_cut = false;

  FASTDW_INLINE int64_t source(int64_t at, int64_t tap) const {
    return at * stride - before + tap * dilation;
  }
  FASTDW_INLINE bool is_inside(int64_t at, int64_t tap) const {
    return source(at, tap) >= 0 && source(at, tap) < size;
  }
  void cut_if_worthwhile() {
    int64_t outside = 0;
    for (int64_t at = 0; dilation > 1 && at < size_out; ++at)
      for (int64_t tap = 0; tap < kernel; ++tap) outside += !is_inside(at, tap);
    is_cut = dilation > 1 && 10 * outside >= size_out * kernel;
  }
  // The taps [first, last) that the pixel reads: one run, since they lie in order.
  int64_t first_tap(int64_t at) const {
    int64_t tap = 0;
    while (is_cut && tap < kernel && source(at, tap) < 0) ++tap;
    return tap;
  }
  int64_t last_tap(int64_t at) const {
    int64_t tap = kernel;
    while (is_cut && tap > 0 && source(at, tap - 1) >= size) --tap;
    return tap;
  }
  int64_t stretch_end(int64_t begin) const {
    if (!is_cut) return size_out;
    int64_t end = begin + 1;
    while (end < size_out && first_tap(end) == first_tap(begin) && last_tap(end) == last_tap(begin))
      ++end;
    return end;
  }
  // Where the slab under the outputs that begin at `first` begins, and how long it is for `count`.
  int64_t slab_begin(int64_t first) const { return is_cut ? 0 : first * stride - before; }
  int64_t slab_size(int64_t count) const {
    return is_cut ? size : (count - 1) * stride + (kernel - 1) * dilation + 1;
  }
};

struct DenseConv {
  const DenseConvParams& params;
  DenseAxis rows, columns;
  float* slab;
  bool reads_x;           // cut both ways at stride 1: x itself serves as the slab
  int64_t chunk_channels;  // a multiple of 16
  int64_t slab_rows;       // output rows of a slab
  int64_t phase_floats;    // of a row of the slab: the columns of one phase
  int64_t row_floats;

  DenseConv(const DenseConvParams& conv, float* scratch)
      : params(conv),
        rows{conv.height,          conv.height_out,        conv.window.kernel_h,
             conv.window.stride_h, conv.window.dilation_h, conv.window.pad_top},
        columns{conv.width,           conv.width_out,         conv.window.kernel_w,
                conv.window.stride_w, conv.window.dilation_w, conv.window.pad_left},
        slab(scratch) {
    rows.cut_if_worthwhile();
    columns.cut_if_worthwhile();
    reads_x = rows.is_cut && columns.is_cut && columns.stride == 1 && conv.x_layout.is_blocked();
    phase_floats =
        ceil_div(columns.slab_size(columns.size_out), columns.stride) * kChannelBlock;
    row_floats = columns.stride * phase_floats;
    const int64_t blocks = channel_blocks(conv.channels_in), taps = rows.kernel * columns.kernel;
    int64_t chunks = smaller(blocks, ceil_div(conv.channels_in * taps, kDenseDepth));
    const auto fits = [&](int64_t output_rows) {
      return rows.slab_size(output_rows) * row_floats * ceil_div(blocks, chunks) <= kCacheFloats;
    };
    // x is not cut by rows, nor into chunks so thin that what goes through y outweighs the rest.
    const int64_t least_rows = reads_x ? rows.size_out : 1;
    const int64_t most_chunks = reads_x ? ceil_div(blocks, kLeastChunkBlocks) : blocks;
    while (chunks < most_chunks && !fits(least_rows)) ++chunks;
    chunk_channels = ceil_div(blocks, chunks) * kChannelBlock;
    slab_rows = 1;
    while (slab_rows < rows.size_out && (reads_x || fits(slab_rows + 1))) ++slab_rows;
  }

  int64_t slab_floats() const {
    if (reads_x) return 0;
    return chunk_channels / kChannelBlock * rows.slab_size(slab_rows) * row_floats;
  }

  // Output rows [first, last) of an image, blocks [block, last_block) of its channels.
  void run(const float* x, float* y, int64_t first, int64_t last, int64_t block,
           int64_t last_block) const {
    for (int64_t row = first; row < last; row += slab_rows) {
      const int64_t end = smaller(last, row + slab_rows);
      for (int64_t channel = 0; channel < params.channels_in; channel += chunk_channels) {
        const int64_t depth = smaller(chunk_channels, params.channels_in - channel);
        DenseTiles tiles{};
        tiles.a = slab;
        tiles.a_block = rows.slab_size(end - row) * row_floats;
        if (reads_x) {
          tiles.a = x + channel / kChannelBlock * params.x_layout.block;
          tiles.a_block = params.x_layout.block;
        } else {
          fill_slab(x + channel / kChannelBlock * params.x_layout.block, row, end, depth);
        }
        tiles.depth = depth;
        tiles.b = params.weights.panels + channel * kChannelBlock;
        const bool is_last = channel + depth == params.channels_in;
        tiles.bounds = clamp_of(is_last ? params.activation : Activation::none);
        tiles.bias = channel == 0 ? params.weights.bias : nullptr;
        for (int64_t b = block; b < last_block; b += kTileBlocks)
          run_panels(tiles, y, row, end, b, smaller(kTileBlocks, last_block - b));
      }
    }
    if (is_clamp(params.activation)) return;
    const Layout& layout = params.y_layout;
    for (int64_t b = block; b < last_block; ++b)
      finish(params.activation, y + first * columns.size_out * layout.pixel + b * layout.block,
             layout.pixel, nullptr, 0, (last - first) * columns.size_out,
             smaller(kChannelBlock, params.channels_out - b * kChannelBlock));
  }

  void run_panels(DenseTiles tiles, float* y, int64_t first, int64_t last, int64_t block,
                  int64_t blocks) const {
    const int64_t channels = params.channels_in;
    const Layout& layout = params.y_layout;
    tiles.b_tap = channels * kChannelBlock;
    tiles.b_tap_row = columns.kernel * tiles.b_tap;
    tiles.b_panel = rows.kernel * tiles.b_tap_row;
    tiles.b += block * tiles.b_panel;
    if (tiles.bias != nullptr) tiles.bias += block * kChannelBlock;
    tiles.phases = columns.stride;
    tiles.phase_floats = phase_floats;
    tiles.dilation = columns.dilation;
    tiles.a_tap_row = rows.dilation * row_floats;
    tiles.c_pixel = layout.pixel;
    tiles.c_block = layout.block;
    tiles.channels = smaller(blocks * kChannelBlock, params.channels_out - block * kChannelBlock);
    tiles.prefetch = true;
    tiles.a_line = rows.stride * row_floats;
    tiles.c_line = columns.size_out * layout.pixel;
    for (int64_t row = first; row < last;) {
      const int64_t end_row = smaller(last, rows.stretch_end(row));
      for (int64_t column = 0; column < columns.size_out;) {
        const int64_t end = columns.stretch_end(column);
        DenseTiles stretch = tiles;
        place_stretch(stretch, first, row, column);
        stretch.c = y + (row * columns.size_out + column) * layout.pixel + block * layout.block;
        run_lines(stretch, end_row - row, end - column, blocks);
        tiles.prefetch = false;
        column = end;
      }
      row = end_row;
    }
  }

  // Several lines of a narrow stretch make one tile.
  static void run_lines(DenseTiles& tiles, int64_t left, int64_t pixels, int64_t blocks) {
    while (left > 0) {
      const int64_t lines = tile_lines(pixels, left);
      if (lines == 1) {
        DenseTiles line = tiles;
        run_stretch(line, pixels, blocks);
      } else {
        tiles.count = 1;
        (blocks == kTileBlocks ? dense_tiles_of<kTileBlocks>(lines, pixels)
                               : dense_tiles_of<1>(lines, pixels))(tiles);
      }
      tiles.prefetch = false;
      tiles.a += lines * tiles.a_line;
      tiles.c += lines * tiles.c_line;
      left -= lines;
    }
  }

  // Finds the taps that the stretch reads, and where in the slab and in the panels they begin.
  void place_stretch(DenseTiles& tiles, int64_t first, int64_t row, int64_t column) const {
    const int64_t i = rows.first_tap(row), j = columns.first_tap(column);
    tiles.tap_rows = larger(0, rows.last_tap(row) - i);
    tiles.tap_columns = larger(0, columns.last_tap(column) - j);
    if (tiles.tap_rows * tiles.tap_columns == 0) return;
    tiles.b += i * tiles.b_tap_row + j * tiles.b_tap;
    const int64_t slab_row = rows.source(row, i) - rows.slab_begin(first);
    const int64_t slab_column = columns.source(column, j) - columns.slab_begin(0);
    tiles.first_phase = slab_column % columns.stride;
    tiles.a += slab_row * row_floats + tiles.first_phase * phase_floats +
               slab_column / columns.stride * kChannelBlock;
  }

  // Tiles as equal as they can be.
  static void run_stretch(DenseTiles& tiles, int64_t pixels, int64_t blocks) {
    const int64_t count = ceil_div(pixels, kTileRows);
    const int64_t fewer = pixels / count, longer = pixels - count * fewer;
    const auto run = [&](int64_t rows, int64_t times) {
      if (times == 0) return;
      tiles.count = times;
      (blocks == kTileBlocks ? dense_tiles_of<kTileBlocks>(rows) : dense_tiles_of<1>(rows))(tiles);
      tiles.prefetch = false;
      tiles.a += rows * times * kChannelBlock;
      tiles.c += rows * times * tiles.c_pixel;
    };
    run(fewer + 1, longer);
    run(fewer, count - longer);
  }

  // The rows of x under the output rows [first, last), `depth` channels, zero outside the image.
  void fill_slab(const float* x, int64_t first, int64_t last, int64_t depth) const {
    const int64_t top = rows.slab_begin(first), height = rows.slab_size(last - first);
    const int64_t left = columns.slab_begin(0), stride = columns.stride;
    const int64_t places = phase_floats / kChannelBlock;
    const Layout& layout = params.x_layout;
    float* to = slab;
    for (int64_t channel = 0; channel < depth; channel += kChannelBlock) {
      const int64_t lanes = smaller(kChannelBlock, depth - channel);
      const float* block = x + channel / kChannelBlock * layout.block;
      for (int64_t row = top; row < top + height; ++row)
        for (int64_t phase = 0; phase < stride; ++phase, to += phase_floats) {
          const int64_t from = left + phase;  // column of x at place 0
          const bool inside = row >= 0 && row < params.height;
          const int64_t begin =
              inside ? smaller(places, from < 0 ? ceil_div(-from, stride) : 0) : places;
          const int64_t until = from < params.width ? ceil_div(params.width - from, stride) : 0;
          const int64_t end = larger(begin, smaller(places, until));
          zero_pixels(to, begin);
          if (end > begin)
            copy_pixels(block + (row * params.width + from + begin * stride) * layout.pixel,
                        stride * layout.pixel, to + begin * kChannelBlock, end - begin, lanes);
          zero_pixels(to + end * kChannelBlock, places - end);
        }
    }
  }

  static void copy_pixels(const float* from, int64_t step, float* to, int64_t pixels,
                          int64_t lanes) {
    if (lanes == kChannelBlock) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += step, to += kChannelBlock)
        FASTDW_UNROLL for (int lane = 0; lane < kChannelBlock; lane += Vec::lanes)
          Vec::load(from + lane).store(to + lane);
      return;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += step, to += kChannelBlock)
      for (int64_t lane = 0; lane < lanes; lane += Vec::lanes)
        Vec::load(from + lane, smaller(Vec::lanes, lanes - lane)).store(to + lane);
  }

  static void zero_pixels(float* to, int64_t pixels) {
    const Vec zero = Vec::fill(0.0f);
    for (int64_t at = 0; at < pixels * kChannelBlock; at += Vec::lanes) zero.store(to + at);
  }
};

int64_t dense_conv_scratch(const DenseConvParams& params) {
  return DenseConv(params, nullptr).slab_floats();
}

void run_dense_conv(const DenseConvParams& params, int64_t begin, int64_t end, float* scratch) {
  const DenseConv conv(params, scratch);
  const int64_t blocks = channel_blocks(params.channels_out);
  const int64_t units = params.splits_channels() ? blocks : params.height_out;  // of an image
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / units, first = unit % units;
    const int64_t last = smaller(first + end - unit, units);
    const float* x = params.x + image * params.x_layout.image;
    float* y = params.y + image * params.y_layout.image;
    if (params.splits_channels()) conv.run(x, y, 0, params.height_out, first, last);
    else conv.run(x, y, first, last, 0, blocks);
    unit += last - first;
  }
}

void describe_dense_conv(const DenseConvParams& params, int64_t, int64_t, const Notes& notes) {
  const DenseConv conv(params, nullptr);
  notes.add(notes.to, "slab_rows", conv.slab_rows);
  notes.add(notes.to, "chunk_channels", smaller(params.channels_in, conv.chunk_channels));
  notes.add(notes.to, "tile_pixels", kTileRows);
  notes.add(notes.to, "tile_channels", kTileBlocks * kChannelBlock);
  notes.add(notes.to, "slab_floats", conv.slab_floats());
}

}  // namespace
}  // namespace fastdw
