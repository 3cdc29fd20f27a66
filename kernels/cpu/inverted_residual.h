// y = project(act(depthwise(act(expand(x))))) [+ x], or without expand: MobileNet V2 (arXiv
// 1801.04381, table 1) and V1 (arXiv 1704.04861, section 3.1) blocks, batch norm folded in.
// Per band of output rows: each chunk of hidden channels is expanded into a ring
// [16-channel block][row][column][16] and filtered into [block][pixel][16]; the band is then
// projected with the full depth. What fills the ring is a template argument: a 1x1 convolution
// here, a network's stem in stem_block.h.
#pragma once

#include "kernels/cpu/blocking.h"
#include "kernels/cpu/depthwise_rows.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/hidden_share_sum.h"
#include "kernels/cpu/notes.h"

namespace fastdw {
namespace {

// Rows [from, to) of the hidden tensor, of the blocks [block, last_block): row `from` of `block`
// goes to `to_row`. The rows lie one after the other, the blocks block_stride apart.
struct HiddenRows {
  int64_t from, to, block, last_block;
  float* to_row;
  int64_t block_stride;
};

// Expands rows of x; NHWC rows are brought into blocks of 16 channels first.
struct PointwiseExpand {
  const InvertedResidualParams& params;
  float* input;  // where blocked rows of x go
  int64_t input_block;
  const float* x = nullptr;      // of one image
  const float* first = nullptr;  // row `from` of the rows taken, in blocks
  int64_t from = 0;

  void begin_image(int64_t image) { x = params.x + image * params.x_layout.image; }

  // The rows that the calls of fill() up to the next take_rows() will ask for.
  void take_rows(int64_t from_row, int64_t to_row) {
    const float* rows = x + from_row * params.width * params.x_layout.pixel;
    from = from_row;
    first = rows;
    if (params.x_layout.is_blocked()) return;
    first = input;
    block_pixels(rows, params.x_layout, (to_row - from_row) * params.width, params.channels_in,
                 input, input_block);
  }

  void fill(const HiddenRows& rows) const {
    Gemm call{};
    call.a = first + (rows.from - from) * params.width * kChannelBlock;
    call.a_block = params.x_layout.is_blocked() ? params.x_layout.block : input_block;
    call.weights = params.expand;
    call.depth = params.channels_in;
    // Whole blocks: the ring is ours.
    call.channels_out = channel_blocks(params.channels_hidden) * kChannelBlock;
    call.first_block = rows.block;
    call.last_block = rows.last_block;
    call.c = rows.to_row - rows.block * rows.block_stride;
    call.c_pixel = kChannelBlock;
    call.c_block = rows.block_stride;
    call.pixels = (rows.to - rows.from) * params.width;
    call.activation = params.expand_activation;
    gemm(call);
  }
};

// The first hidden block (of 16 channels) of a share.
FASTDW_INLINE int64_t first_block_of(const InvertedResidualParams& params, int64_t share) {
  return channel_blocks(params.channels_hidden) * share / params.hidden_shares;
}

// The block over one expansion. Without expansion (params.has_expand) `expand` is not used.
template <class Expand>
struct BlockBands {
  const InvertedResidualParams& params;
  BlockBlocking blocking;
  Expand& expand;
  float *slab, *filtered;
  int64_t first_share, last_share;  // of the hidden channels

  // Rows [first_row, last_row) of one image.
  void run(int64_t image, int64_t first_row, int64_t last_row) const {
    const Window& window = params.window;
    const float* x = params.x + image * params.x_layout.image;
    if (params.has_expand) expand.begin_image(image);
    int64_t expanded = 0;  // rows before this one are in the ring, or no longer needed
    int64_t slot = 0;      // the ring's place of row `oldest`
    int64_t oldest = -1;
    const int64_t end_block = first_block_of(params, last_share);
    for (int64_t row = first_row; row < last_row; row += blocking.band_rows) {
      const int64_t rows = smaller(blocking.band_rows, last_row - row);
      const int64_t top = row * window.stride_h - window.pad_top;
      const int64_t from = larger(0, smaller(top, params.height));
      const int64_t to = larger(from, smaller(params.height, top + rows_under(window, rows)));
      if (oldest < 0) {
        expanded = from;
      } else {
        slot = (slot + from - oldest) % blocking.ring_rows;
        expanded = larger(expanded, from);
      }
      oldest = from;
      if (params.has_expand) expand.take_rows(expanded, to);
      for (int64_t block = first_block(); block < end_block; block += blocking.chunk_blocks) {
        const int64_t last_block = smaller(block + blocking.chunk_blocks, end_block);
        if (params.has_expand) fill_ring(expanded, to, oldest, slot, block, last_block);
        filter(x, image, oldest, slot, row, rows, block, last_block);
      }
      expanded = larger(expanded, to);
      if (!params.has_project) continue;
      params.hidden_shares > 1 ? project_shares(image, row, rows) : project(image, row, rows);
    }
  }

  int64_t first_block() const { return first_block_of(params, first_share); }
  int64_t row_floats() const { return params.width * kChannelBlock; }
  int64_t slab_stride() const { return blocking.ring_rows * row_floats(); }
  // With one band the chunks take turns in the slab.
  float* slab_of(int64_t block) const {
    return slab + (block - first_block()) % blocking.slab_blocks * slab_stride();
  }

  void fill_ring(int64_t from, int64_t to, int64_t oldest, int64_t slot, int64_t block,
                 int64_t last_block) const {
    for (int64_t row = from; row < to;) {  // a run of rows ends where the ring wraps
      int64_t place = slot + row - oldest;
      if (place >= blocking.ring_rows) place -= blocking.ring_rows;
      const int64_t rows = smaller(to - row, blocking.ring_rows - place);
      expand.fill({row, row + rows, block, last_block, slab_of(block) + place * row_floats(),
                   slab_stride()});
      row += rows;
    }
  }

  void filter(const float* x, int64_t image, int64_t oldest, int64_t slot, int64_t row,
              int64_t rows, int64_t block, int64_t last_block) const {
    const int64_t taps = params.window.kernel_h * params.window.kernel_w * kChannelBlock;
    const Layout& from = params.x_layout;
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
        call.x = {slab_of(block), row_floats(), kChannelBlock, oldest, slot, blocking.ring_rows};
        call.load_channels = kChannelBlock;
      } else {
        call.x = {x + block * from.block, params.width * from.pixel, from.pixel, 0, 0,
                  params.height};
        call.load_channels =
            smaller(kChannelBlock, params.channels_hidden - block * kChannelBlock);
      }
      call.y = filtered + (block - first_block()) * filtered_stride();
      if (!params.has_project) keep_filtered(call, image, row, block);
      call.taps = params.depthwise.taps + block * taps;
      call.bias = params.depthwise.bias + block * kChannelBlock;
      depthwise_block(call);
    }
  }

  // Without projection the filtered rows go to y.
  void keep_filtered(DepthwiseBlock& call, int64_t image, int64_t row, int64_t block) const {
    const Layout& y = params.y_layout;
    const int64_t channel = block * kChannelBlock;
    call.y = params.y + image * y.image + row * params.width_out * y.pixel + block * y.block;
    call.y_row_stride = params.width_out * y.pixel;
    call.y_pixel_stride = y.pixel;
    if (!y.is_blocked())
      call.store_channels = smaller(kChannelBlock, params.channels_hidden - channel);
    if (params.row_sums == nullptr) return;
    const Layout sums = row_sums_layout(params.channels_hidden, params.height_out);
    call.row_sums = params.row_sums + image * sums.image + row * sums.pixel + channel;
    call.row_sums_stride = sums.pixel;
  }

  int64_t filtered_stride() const {
    return blocking.band_rows * params.width_out * kChannelBlock;
  }

  // The filtered hidden channels by their weights, to y or to partial sums.
  Gemm projection(int64_t share, int64_t end_share, float* to, int64_t row, int64_t rows,
                  const Layout& layout) const {
    const int64_t block = first_block_of(params, share);
    const int64_t end_block = first_block_of(params, end_share);
    Gemm call{};
    call.a = filtered + (block - first_block()) * filtered_stride();
    call.a_block = filtered_stride();
    call.weights = params.project;
    call.weights.panels += block * kChannelBlock * kChannelBlock;
    call.b_panel = params.channels_hidden * kChannelBlock;
    call.depth =
        smaller(params.channels_hidden, end_block * kChannelBlock) - block * kChannelBlock;
    call.channels_out = params.channels_out;
    call.last_block = channel_blocks(params.channels_out);
    call.c = to + row * params.width_out * layout.pixel;
    call.c_pixel = layout.pixel;
    call.c_block = layout.block;
    call.pixels = rows * params.width_out;
    return call;
  }

  void project(int64_t image, int64_t row, int64_t rows) const {
    const Layout &x = params.x_layout, &y = params.y_layout;
    Gemm call = projection(first_share, last_share, params.y + image * y.image, row, rows, y);
    if (params.residual)
      call.residual = params.x + image * x.image + row * params.width_out * x.pixel;
    call.residual_pixel = x.pixel;
    call.residual_block = x.block;
    call.activation = params.project_activation;
    gemm(call);
  }

  // One share after the other for the same panels: the weights are read in their order. Who has all
  // shares adds them while they are in the L1 cache.
  void project_shares(int64_t image, int64_t row, int64_t rows) const {
    const Layout layout =
        blocked_layout(params.channels_out, params.height_out * params.width_out);
    const int64_t blocks = channel_blocks(params.channels_out);
    const bool is_last = row + rows == params.height_out;
    const bool adds = is_last && last_share - first_share == params.hidden_shares;
    for (int64_t block = 0; block < blocks; block += kTileBlocks) {
      const int64_t end_block = smaller(block + kTileBlocks, blocks);
      for (int64_t share = first_share; share < last_share; ++share) {
        const int64_t before = image * params.hidden_shares + share;
        float* sums = params.partial_sums + before * layout.image;
        Gemm call = projection(share, share + 1, sums, row, rows, layout);
        if (share > 0) call.weights.bias = nullptr;
        call.channels_out = blocks * kChannelBlock;  // whole blocks: the sums are ours
        call.first_block = block;
        call.last_block = end_block;
        gemm(call);
      }
      for (int64_t b = block; adds && b < end_block; ++b) add_shares(params, image, b);
    }
  }
};

template <class Expand>
void run_block_bands(const InvertedResidualParams& params, const BlockBlocking& blocking,
                     Expand& expand, int64_t begin, int64_t end, float* scratch) {
  const int64_t shares = params.hidden_shares, image_units = shares * params.height_out;
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / image_units, share = unit % image_units / params.height_out;
    const int64_t row = unit % params.height_out;
    const bool whole_image = unit % image_units == 0 && end - unit >= image_units;
    const int64_t rows = smaller(end - unit, params.height_out - row);
    const int64_t end_share = whole_image ? shares : share + 1;
    const BlockBands<Expand> bands{params, blocking, expand, scratch,
                                   scratch + blocking.slab_floats, share, end_share};
    bands.run(image, row, row + rows);
    unit += (end_share - share) * rows;
  }
}

void run_inverted_residual(const InvertedResidualParams& params, int64_t begin, int64_t end,
                           float* scratch) {
  const BlockBlocking blocking = block_blocking(params, params.height_out);
  PointwiseExpand expand{params, scratch + blocking.slab_floats + blocking.filtered_floats,
                         blocking.ring_rows * params.width * kChannelBlock};
  run_block_bands(params, blocking, expand, begin, end, scratch);
}

int64_t inverted_residual_scratch(const InvertedResidualParams& params) {
  const BlockBlocking blocking = block_blocking(params, params.height_out);
  return blocking.slab_floats + blocking.filtered_floats + blocking.input_floats;
}

void describe_inverted_residual(const InvertedResidualParams& params, int64_t, int64_t,
                                const Notes& notes) {
  const BlockBlocking blocking = block_blocking(params, params.height_out);
  if (params.hidden_shares > 1) notes.add(notes.to, "hidden_shares", params.hidden_shares);
  notes.add(notes.to, "band_rows", blocking.band_rows);
  notes.add(notes.to, "ring_rows", blocking.ring_rows);
  notes.add(notes.to, "chunk_channels", blocking.chunk_blocks * kChannelBlock);
  notes.add(notes.to, "slab_channels", blocking.slab_blocks * kChannelBlock);
  notes.add(notes.to, "tile_pixels", kTileRows);
  notes.add(notes.to, "tile_channels", kTileBlocks * kChannelBlock);
  notes.add(notes.to, "input_floats", blocking.input_floats);
  notes.add(notes.to, "slab_floats", blocking.slab_floats);
  notes.add(notes.to, "filtered_floats", blocking.filtered_floats);
}

}  // namespace
}  // namespace fastdw
