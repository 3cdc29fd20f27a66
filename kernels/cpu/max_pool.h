// y[r, q] = max_{i,j} x[r s - top + i d, q s - left + j d], 16 channels at a time; NaN wins, as in
// torch.
#pragma once

#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

// The taps [first, last) of a window that meet the image.
struct PoolTaps {
  int64_t first, last;

  PoolTaps(int64_t begin, int64_t size, int64_t kernel, int64_t dilation) : first(0), last(kernel) {
    while (first < last && begin + first * dilation < 0) ++first;
    while (first < last && begin + (last - 1) * dilation >= size) --last;
  }
};

int64_t max_pool_scratch(const MaxPoolParams&) { return 0; }

void pool_row(const MaxPoolParams& params, const float* x, int64_t row, float* y, int64_t lanes) {
  const Window& window = params.window;
  const int64_t pixel = params.x_layout.pixel, top = row * window.stride_h - window.pad_top;
  const PoolTaps rows(top, params.height, window.kernel_h, window.dilation_h);
  for (int64_t column = 0; column < params.width_out; ++column, y += params.y_layout.pixel) {
    const int64_t left = column * window.stride_w - window.pad_left;
    const PoolTaps columns(left, params.width, window.kernel_w, window.dilation_w);
    for (int64_t lane = 0; lane < lanes; lane += Vec::lanes) {
      const int64_t count = smaller(Vec::lanes, lanes - lane);
      Vec largest = Vec::fill(-__builtin_inff());
      for (int64_t i = rows.first; i < rows.last; ++i)
        for (int64_t j = columns.first; j < columns.last; ++j) {
          const int64_t source_row = top + i * window.dilation_h;
          const float* at = x + (source_row * params.width + left + j * window.dilation_w) * pixel;
          const bool whole = count == Vec::lanes;
          largest = max_or_nan(largest, whole ? Vec::load(at + lane) : Vec::load(at + lane, count));
        }
      if (count == Vec::lanes) largest.store(y + lane);
      else largest.store(y + lane, count);
    }
  }
}

void run_max_pool(const MaxPoolParams& params, int64_t begin, int64_t end, float*) {
  const Layout &from = params.x_layout, &to = params.y_layout;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / params.height_out, row = unit % params.height_out;
    for (int64_t first = 0; first < params.channels; first += kChannelBlock) {
      const int64_t block = first / kChannelBlock;
      pool_row(params, params.x + image * from.image + block * from.block, row,
               params.y + image * to.image + block * to.block + row * params.width_out * to.pixel,
               smaller(kChannelBlock, params.channels - first));
    }
  }
}

void describe_max_pool(const MaxPoolParams&, int64_t, int64_t, const Notes&) {}

}  // namespace
}  // namespace fastdw
