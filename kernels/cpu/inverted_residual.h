// y = project(act(depthwise(act(expand(x))))) [+ x], or without expand: MobileNet V2 (arXiv
// 1801.04381, table 1) and V1 (arXiv 1704.04861, section 3.1) blocks, batch norm folded in.
// Per band of output rows: the rows of x under it are brought into blocks of 16 channels; each
// chunk of hidden channels is expanded into a ring [16-channel block][row][column][16] and filtered
// into [block][pixel][16]; the band is then projected with the full depth.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/depthwise_rows.h"
#include "kernels/cpu/gemm.h"

namespace fastdw {
namespace {

struct InvertedResidual {
  const InvertedResidualParams& params;
  BlockBlocking blocking;
  float *slab, *filtered, *input;

  // Rows [first_row, last_row) of image x; both ends inside one image.
  void run(const float* x, float* y, int64_t first_row, int64_t last_row) const {
    const Window& window = params.window;
    int64_t expanded = 0;  // rows of x before this one are in the ring, or no longer needed
    int64_t slot = 0;      // the ring's place of row `oldest`
    int64_t oldest = -1;
    for (int64_t row = first_row; row < last_row; row += blocking.band_rows) {
      const int64_t rows = smaller(blocking.band_rows, last_row - row);
      const int64_t top = row * window.stride_h - window.pad_top;
      const int64_t from = larger(0, smaller(top, params.height));
      const int64_t to = larger(from, smaller(params.height, top + rows_under(window, rows)));
      if (oldest < 0) {
        oldest = expanded = from;
      } else {
        slot = (slot + from - oldest) % blocking.ring_rows;
        oldest = from;
      }
      expanded = larger(expanded, from);
      if (params.has_expand) take_input(x, expanded, to);
      for (int64_t block = 0; block < hidden_blocks(); block += blocking.chunk_blocks) {
        const int64_t last_block = smaller(block + blocking.chunk_blocks, hidden_blocks());
        if (params.has_expand) expand(expanded, to, oldest, slot, block, last_block);
        filter(x, oldest, slot, row, rows, block, last_block);
      }
      expanded = larger(expanded, to);
      project(x, y, row, rows);
    }
  }

  int64_t hidden_blocks() const { return channel_blocks(params.channels_hidden); }
  int64_t input_stride() const { return blocking.ring_rows * params.width * kChannelBlock; }
  int64_t slab_stride() const { return blocking.ring_rows * params.width * kChannelBlock; }
  // With one band the chunks take turns in the slab.
  float* slab_of(int64_t block) const {
    return slab + block % blocking.slab_blocks * slab_stride();
  }

  void take_input(const float* x, int64_t from, int64_t to) const {
    const int64_t row = params.width * params.channels_in;
    block_pixels(x + from * row, (to - from) * params.width, params.channels_in, input,
                 input_stride());
  }

  void expand(int64_t from, int64_t to, int64_t oldest, int64_t slot, int64_t block,
              int64_t last_block) const {
    for (int64_t row = from; row < to;) {  // a run of rows ends where the ring wraps
      int64_t place = slot + row - oldest;
      if (place >= blocking.ring_rows) place -= blocking.ring_rows;
      const int64_t rows = smaller(to - row, blocking.ring_rows - place);
      Gemm call{};
      call.a = input + (row - from) * params.width * kChannelBlock;
      call.a_block = input_stride();
      call.weights = params.expand;
      call.depth = params.channels_in;
      call.channels_out = hidden_blocks() * kChannelBlock;  // whole blocks: the slab is ours
      call.first_block = block;
      call.last_block = last_block;
      call.c = slab_of(block) + place * params.width * kChannelBlock - block * slab_stride();
      call.c_row = kChannelBlock;
      call.c_block = slab_stride();
      call.pixels = rows * params.width;
      call.activation = params.expand_activation;
      gemm(call);
      row += rows;
    }
  }

  void filter(const float* x, int64_t oldest, int64_t slot, int64_t row, int64_t rows,
              int64_t block, int64_t last_block) const {
    const int64_t taps = params.window.kernel_h * params.window.kernel_w * kChannelBlock;
    DepthwiseBlock call{};
    call.height = params.height;
    call.width = params.width;
    call.y_row_stride = params.width_out * kChannelBlock;
    call.y_pixel_stride = kChannelBlock;
    call.first_row = row;
    call.last_row = row + rows;
    call.width_out = params.width_out;
    call.store_channels = kChannelBlock;
    call.window = params.window;
    call.activation = params.depthwise_activation;
    for (; block < last_block; ++block) {
      if (params.has_expand) {
        call.x = {slab_of(block), params.width * kChannelBlock, kChannelBlock, oldest, slot,
                  blocking.ring_rows};
        call.load_channels = kChannelBlock;
      } else {
        call.x = {x + block * kChannelBlock, params.width * params.channels_hidden,
                  params.channels_hidden, 0, 0, params.height};
        call.load_channels =
            smaller(kChannelBlock, params.channels_hidden - block * kChannelBlock);
      }
      call.y = filtered + block * blocking.band_rows * call.y_row_stride;
      call.taps = params.depthwise.taps + block * taps;
      call.bias = params.depthwise.bias + block * kChannelBlock;
      depthwise_block(call);
    }
  }

  void project(const float* x, float* y, int64_t row, int64_t rows) const {
    const int64_t at = row * params.width_out * params.channels_out;
    Gemm call{};
    call.a = filtered;
    call.a_block = blocking.band_rows * params.width_out * kChannelBlock;
    call.weights = params.project;
    call.depth = params.channels_hidden;
    call.channels_out = params.channels_out;
    call.last_block = channel_blocks(params.channels_out);
    call.residual = params.residual ? x + at : nullptr;
    call.c = y + at;
    call.c_row = params.channels_out;
    call.c_block = kChannelBlock;
    call.pixels = rows * params.width_out;
    call.activation = params.project_activation;
    gemm(call);
  }
};

void run_inverted_residual(const InvertedResidualParams& params, int64_t begin, int64_t end,
                           float* scratch) {
  const BlockBlocking blocking = block_blocking(params, params.height_out);
  float* filtered = scratch + blocking.slab_floats;
  const InvertedResidual block{params, blocking, scratch, filtered,
                               filtered + blocking.filtered_floats};
  const int64_t x_image = params.height * params.width * params.channels_in;
  const int64_t y_image = params.height_out * params.width_out * params.channels_out;
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / params.height_out, row = unit % params.height_out;
    const int64_t rows = smaller(end - unit, params.height_out - row);
    block.run(params.x + image * x_image, params.y + image * y_image, row, row + rows);
    unit += rows;
  }
}

int64_t inverted_residual_scratch(const InvertedResidualParams& params) {
  const BlockBlocking blocking = block_blocking(params, params.height_out);
  return blocking.slab_floats + blocking.filtered_floats + blocking.input_floats;
}

}  // namespace
}  // namespace fastdw
