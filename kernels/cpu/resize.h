// y[r, q] = x resized as torch.nn.functional.interpolate does it: bilinear, with corners aligned or
// half-pixel centres, or nearest. A row of y is a mix of two rows of x; its columns are mixed from
// that row. Of a single pixel it makes a constant image.
#pragma once

#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

// Between which two pixels of x a pixel of y lies, and how far from the first.
struct ResizeSource {
  int64_t first, second;
  float fraction;
};

struct ResizeAxis {
  int64_t size;
  float step;  // of x from one pixel of y to the next
  ResizeMode mode;

  ResizeAxis(int64_t size_in, int64_t size_out, ResizeMode resize_mode)
      : size(size_in), step(0.0f), mode(resize_mode) {
    const bool aligned = mode == ResizeMode::bilinear_aligned;
    if (!aligned) step = static_cast<float>(size_in) / static_cast<float>(size_out);
    else if (size_out > 1)
      step = static_cast<float>(size_in - 1) / static_cast<float>(size_out - 1);
  }

  ResizeSource source(int64_t at) const {
    const float index = static_cast<float>(at);
    float place = index * step;
    if (mode == ResizeMode::bilinear) place = step * (index + 0.5f) - 0.5f;
    if (place < 0.0f) place = 0.0f;
    const int64_t first = smaller(static_cast<int64_t>(place), size - 1);
    if (mode == ResizeMode::nearest) return {first, first, 0.0f};
    const float fraction = place - static_cast<float>(first);
    return {first, smaller(first + 1, size - 1), fraction < 1.0f ? fraction : 1.0f};
  }
};

// The mixed row of 16 channels, and of every column of y its two columns of x and the fraction.
int64_t resize_scratch(const ResizeParams& params) {
  return params.width * kChannelBlock + 3 * params.width_out;
}

FASTDW_INLINE Vec mixed(Vec first, Vec second, Vec fraction, Vec rest) {
  return fma(second, fraction, first * rest);
}

// row[pixel][16] = the mix of two rows of x, `lanes` channels of a block.
void mix_rows(const float* first, const float* second, float fraction, int64_t x_pixel,
              int64_t pixels, int64_t lanes, float* row) {
  const Vec part = Vec::fill(fraction), rest = Vec::fill(1.0f - fraction);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, row += kChannelBlock)
    for (int64_t lane = 0; lane < lanes; lane += Vec::lanes) {
      const int64_t at = pixel * x_pixel + lane, count = smaller(Vec::lanes, lanes - lane);
      const bool whole = count == Vec::lanes;
      const Vec one = whole ? Vec::load(first + at) : Vec::load(first + at, count);
      const Vec other = whole ? Vec::load(second + at) : Vec::load(second + at, count);
      (fraction == 0.0f ? one : mixed(one, other, part, rest)).store(row + lane);
    }
}

void mix_columns(const float* row, const float* columns, int64_t pixels, int64_t lanes, float* y,
                 int64_t y_pixel) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, y += y_pixel, columns += 3) {
    const float* first = row + static_cast<int64_t>(columns[0]);
    const float* second = row + static_cast<int64_t>(columns[1]);
    const Vec part = Vec::broadcast(columns + 2), rest = Vec::fill(1.0f - columns[2]);
    for (int64_t lane = 0; lane < lanes; lane += Vec::lanes) {
      const Vec one = Vec::load(first + lane);
      const Vec value =
          columns[2] == 0.0f ? one : mixed(one, Vec::load(second + lane), part, rest);
      if (lanes - lane >= Vec::lanes) value.store(y + lane);
      else value.store(y + lane, lanes - lane);
    }
  }
}

void run_resize(const ResizeParams& params, int64_t begin, int64_t end, float* scratch) {
  const ResizeAxis rows(params.height, params.height_out, params.mode);
  const ResizeAxis across(params.width, params.width_out, params.mode);
  float *row = scratch, *columns = scratch + params.width * kChannelBlock;
  for (int64_t column = 0; column < params.width_out; ++column) {
    const ResizeSource source = across.source(column);
    columns[3 * column] = static_cast<float>(source.first * kChannelBlock);
    columns[3 * column + 1] = static_cast<float>(source.second * kChannelBlock);
    columns[3 * column + 2] = source.fraction;
  }
  const Layout &from = params.x_layout, &to = params.y_layout;
  const int64_t x_row = params.width * from.pixel, y_row = params.width_out * to.pixel;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / params.height_out, at = unit % params.height_out;
    const ResizeSource source = rows.source(at);
    const float* x = params.x + image * from.image;
    float* y = params.y + image * to.image + at * y_row;
    for (int64_t first = 0; first < params.channels; first += kChannelBlock) {
      const int64_t lanes = smaller(kChannelBlock, params.channels - first);
      const float* block = x + first / kChannelBlock * from.block;
      mix_rows(block + source.first * x_row, block + source.second * x_row, source.fraction,
               from.pixel, params.width, lanes, row);
      mix_columns(row, columns, params.width_out, lanes,
                  y + first / kChannelBlock * to.block, to.pixel);
    }
  }
}

void describe_resize(const ResizeParams& params, int64_t, int64_t, const Notes& notes) {
  notes.add(notes.to, "row_floats", resize_scratch(params));
}

}  // namespace
}  // namespace fastdw
