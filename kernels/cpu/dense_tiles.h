// Tiles of a dense convolution: pixels of one line of y or of several, by blocks of 16 channels.
#pragma once

#include "kernels/cpu/gemm.h"

namespace fastdw {
namespace {

// Output pixels under which the same taps are read.
struct DenseTiles {
  const float* a;       // of the first tap read
  int64_t a_block;      // floats from 16 channels to the next
  int64_t a_tap_row;    // floats from a tap to the one below
  int64_t a_line;       // floats from what a line of y reads to what the next reads
  int64_t phase_floats, phases, dilation;  // columns of x: phase, place in it
  int64_t first_phase;                     // of the first tap read
  int64_t tap_rows, tap_columns;           // read
  int64_t depth;                           // channels
  const float* b;  // weights of the first tap read
  int64_t b_panel, b_tap, b_tap_row;
  const float* bias;  // null: the sums go on from c
  float* c;
  int64_t c_pixel, c_line, c_block, channels;
  int64_t count;  // tiles: one after the other along a line, those of several lines downwards
  Clamp bounds;
  bool prefetch;
};

template <int Lines, int Width, int Blocks>
FASTDW_INLINE void add_taps(const DenseTiles& tiles, const float* a_tile, bool prefetch,
                            Vec (&sum)[Lines * Width][Blocks * kChannelBlock / Vec::lanes]) {
  GemmTiles product{};
  product.a_block = tiles.a_block;
  product.depth = tiles.depth;
  product.b_panel = tiles.b_panel;
  product.ahead_lines = prefetch ? kChannelBlock : 0;
  for (int64_t i = 0; i < tiles.tap_rows; ++i) {
    int64_t phase = tiles.first_phase, place = 0;
    const float* row = a_tile + i * tiles.a_tap_row;
    for (int64_t j = 0; j < tiles.tap_columns; ++j) {
      product.b = tiles.b + i * tiles.b_tap_row + j * tiles.b_tap;
      const int64_t shift = (phase - tiles.first_phase) * tiles.phase_floats;
      const float* a = row + shift + place * kChannelBlock;
      multiply_add<Lines * Width, Blocks, Width>(product, a, product.b + kAheadFloats, sum,
                                                 tiles.a_line);
      phase += tiles.dilation;
      for (; phase >= tiles.phases; phase -= tiles.phases) ++place;
    }
  }
}

template <int Lines, int Width, int Blocks>
__attribute__((noinline)) void dense_tiles(const DenseTiles& tiles) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block, rows = Lines * Width;
  auto at = [&](int v) { return v / per_block * tiles.c_block + v % per_block * Vec::lanes; };
  auto valid = [&](int v) { return tiles.channels - v * Vec::lanes; };
  const VecClamp clamped(tiles.bounds);
  const float* a_tile = tiles.a;
  float* c = tiles.c;
  const int64_t c_pixel = tiles.c_pixel, c_line = tiles.c_line;
  auto place = [&](int row, int v) {
    return c + at(v) + row / Width * c_line + row % Width * c_pixel;
  };
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    Vec sum[rows][vectors];
    FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
      const int64_t count = valid(v);
      if (tiles.bias != nullptr) {
        const Vec start = Vec::load(tiles.bias + v * Vec::lanes);
        FASTDW_UNROLL for (int row = 0; row < rows; ++row) sum[row][v] = start;
      } else if (count >= Vec::lanes) {
        FASTDW_UNROLL for (int row = 0; row < rows; ++row) sum[row][v] = Vec::load(place(row, v));
      } else {
        FASTDW_UNROLL for (int row = 0; row < rows; ++row)
          sum[row][v] = count > 0 ? Vec::load(place(row, v), count) : Vec::fill(0.0f);
      }
    }
    add_taps<Lines, Width, Blocks>(tiles, a_tile, tiles.prefetch && tile == 0, sum);
    FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
      const int64_t count = valid(v);
      if (count >= Vec::lanes) {
        FASTDW_UNROLL for (int row = 0; row < rows; ++row)
          clamped(sum[row][v]).store(place(row, v));
      } else if (count > 0) {
        FASTDW_UNROLL for (int row = 0; row < rows; ++row)
          clamped(sum[row][v]).store(place(row, v), count);
      }
    }
    a_tile += Lines == 1 ? Width * kChannelBlock : Lines * tiles.a_line;
    c += Lines == 1 ? Width * c_pixel : Lines * c_line;
  }
}

using DenseTilesFunction = void (*)(const DenseTiles&);

template <int Blocks, int Lines = 1, int Width = kTileRows / Lines>
FASTDW_INLINE DenseTilesFunction dense_tiles_of(int64_t width) {
  if constexpr (Width <= 1) {
    return dense_tiles<Lines, 1, Blocks>;
  } else {
    return width == Width ? dense_tiles<Lines, Width, Blocks>
                          : dense_tiles_of<Blocks, Lines, Width - 1>(width);
  }
}

// Tiles of so many lines there are, where that many pixels fit the registers.
constexpr int64_t kTileLines[] = {7, 4, 3, 2, 1};

template <int Blocks, int Next = 0>
FASTDW_INLINE DenseTilesFunction dense_tiles_of(int64_t lines, int64_t width) {
  constexpr int64_t these = kTileLines[Next];
  if constexpr (these == 1) {
    return dense_tiles_of<Blocks, 1>(width);
  } else if constexpr (these > kTileRows) {
    return dense_tiles_of<Blocks, Next + 1>(lines, width);
  } else {
    return lines == these ? dense_tiles_of<Blocks, static_cast<int>(these)>(width)
                          : dense_tiles_of<Blocks, Next + 1>(lines, width);
  }
}

// How many lines the next tile takes of those left, to make tiles as equal as they can be.
FASTDW_INLINE int64_t tile_lines(int64_t width, int64_t left) {
  const int64_t most = larger(1, kTileRows / width);
  const int64_t wanted = ceil_div(left, ceil_div(left, most));
  for (const int64_t lines : kTileLines)
    if (lines <= wanted) return lines;
  return 1;
}

}  // namespace
}  // namespace fastdw
