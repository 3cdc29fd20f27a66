// Matrix product c[pixel][o] = act(bias[o] + sum_k a[pixel][k] b[k][o]) + residual[pixel][o].
// a: [blocks(K)][pixel][16], so that a pixel's step is a compile-time constant in the inner loop;
// NHWC input is brought into that form once per stretch or band by block_pixels().
// b: panels of 16 output channels, [blocks(O)][K][16]. The register tile is Rows pixels by
// Blocks * 16 channels; each step of k broadcasts Rows values against Blocks * 16 weights.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

// How far beyond the weights in use to prefetch, at least: weights are packed in the order of
// execution, so that the next layer's come in too. All tiles of a panel ask for an equal part: asked
// for at once, what comes from L3 holds the L1 fill buffers, and the products wait.
constexpr int64_t kAheadFloats = (64 << 10) / sizeof(float);

// Tiles of the same number of pixels, one after the other, of the same panels.
struct GemmTiles {
  const float* a;
  int64_t a_block;  // floats from one 16-channel block of a to the next
  int64_t depth;    // K
  const float* b;
  int64_t b_panel;  // floats from one panel to the next
  const float* bias;
  const float* residual;  // or null
  int64_t residual_pixel, residual_block;
  float* c;
  int64_t c_pixel, c_block;  // floats from one pixel, and one block of 16 channels, to the next
  int64_t channels;          // output channels to store, at most Blocks * 16
  Clamp bounds;
  Activation smooth;  // applied to each tile: hardswish or silu, or none
  int64_t count;
  const float* ahead;   // what the first tile prefetches of the panels to come
  int64_t ahead_lines;  // cache lines of each of them for which 16 steps of k ask

  int64_t ahead_floats() const {  // for which a tile asks
    return channel_blocks(depth) * ahead_lines * kChannelBlock;
  }
};

// a[pixel][k] * b[k][o] for `depth` values of k, added to sum. The pixels lie side by side, or Width
// of them on each of several lines, a_line apart.
template <int Rows, int Blocks, int Width = Rows>
FASTDW_INLINE void multiply_add(const GemmTiles& tiles, const float* a_tile, const float* ahead,
                                Vec (&sum)[Rows][Blocks * kChannelBlock / Vec::lanes],
                                int64_t a_line = 0) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block;
  const float* b = tiles.b;
  const int64_t b_panel = tiles.b_panel;
  for (int64_t left = tiles.depth; left > 0; left -= kChannelBlock, a_tile += tiles.a_block) {
    for (int64_t line = 0; line < tiles.ahead_lines; ++line, ahead += kChannelBlock)
      FASTDW_UNROLL for (int block = 0; block < Blocks; ++block)
        prefetch_to_l2(reinterpret_cast<const char*>(ahead + block * b_panel));
    const float* a = a_tile;
    const float* a_end = a + smaller(left, kChannelBlock);
    // Twice unrolled: the loop's own instructions compete with the FMAs for ports 0 and 5.
    _Pragma("GCC unroll 2") for (; a != a_end; ++a) {
      Vec weight[vectors];
      FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
        weight[v] = Vec::load(b + v / per_block * b_panel + v % per_block * Vec::lanes);
      b += kChannelBlock;
      FASTDW_UNROLL for (int row = 0; row < Rows; ++row) {
        const Vec pixel = Vec::broadcast(a + row / Width * a_line + row % Width * kChannelBlock);
        FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
          sum[row][v] = fma(pixel, weight[v], sum[row][v]);
      }
    }
  }
}

// Hardswish is a few instructions, and applied in registers; SiLU to the tile just stored.
FASTDW_INLINE bool is_applied_to_tiles(Activation activation) {
  return activation == Activation::hardswish || activation == Activation::silu;
}

template <int Rows, int Blocks>
__attribute__((noinline)) void gemm_tiles(const GemmTiles& tiles) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block;
  auto at = [](int v, int64_t block) { return v / per_block * block + v % per_block * Vec::lanes; };
  auto valid = [&](int v) { return tiles.channels - v * Vec::lanes; };
  const VecClamp clamped(tiles.bounds);

  const float* a_tile = tiles.a;
  const float* residual = tiles.residual;
  const float* ahead = tiles.ahead;
  float* c = tiles.c;
  for (int64_t left_tiles = tiles.count; left_tiles > 0; --left_tiles) {
    Vec sum[Rows][vectors];
    FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
      const Vec start = Vec::load(tiles.bias + v * Vec::lanes);
      FASTDW_UNROLL for (int row = 0; row < Rows; ++row) sum[row][v] = start;
    }
    if (residual != nullptr) {
      const int64_t pixel = tiles.residual_pixel;
      FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
        const float* add = residual + at(v, tiles.residual_block);
        const int64_t count = valid(v);
        if (count >= Vec::lanes) {
          FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
            sum[row][v] = sum[row][v] + Vec::load(add + row * pixel);
        } else if (count > 0) {
          FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
            sum[row][v] = sum[row][v] + Vec::load(add + row * pixel, count);
        }
      }
      residual += Rows * pixel;
    }

    multiply_add<Rows, Blocks>(tiles, a_tile, ahead, sum);
    ahead += tiles.ahead_floats();

    if (tiles.smooth == Activation::hardswish)
      FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
        FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
          sum[row][v] = activate<Activation::hardswish>(sum[row][v]);
    const int64_t c_pixel = tiles.c_pixel;
    FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
      float* out = c + at(v, tiles.c_block);
      const int64_t count = valid(v);
      if (count >= Vec::lanes) {
        FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
          clamped(sum[row][v]).store(out + row * c_pixel);
      } else if (count > 0) {
        FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
          clamped(sum[row][v]).store(out + row * c_pixel, count);
      }
    }
    if (tiles.smooth == Activation::silu)
      for (int64_t first = 0; first < tiles.channels; first += kChannelBlock)
        finish_pixels<Activation::silu>(c + first / kChannelBlock * tiles.c_block, c_pixel, nullptr,
                                        0, Rows, smaller(kChannelBlock, tiles.channels - first));
    a_tile += Rows * kChannelBlock;
    c += Rows * c_pixel;
  }
}

using GemmTilesFunction = void (*)(const GemmTiles&);

// The tiles of `rows` pixels, 1 <= rows <= kTileRows.
template <int Blocks, int Rows = kTileRows>
FASTDW_INLINE GemmTilesFunction gemm_tiles_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return gemm_tiles<1, Blocks>;
  } else {
    return rows == Rows ? gemm_tiles<Rows, Blocks> : gemm_tiles_of<Blocks, Rows - 1>(rows);
  }
}

struct Gemm {
  const float* a;
  int64_t a_block;
  PointwiseWeights weights;  // bias may be null: the sums start from 0
  int64_t b_panel;           // floats from one panel to the next; 0: depth * 16
  int64_t depth, channels_out;
  int64_t first_block, last_block;  // the panels to compute
  const float* residual;            // where pixel 0 of panel 0 is, or null
  int64_t residual_pixel, residual_block;
  float* c;  // where pixel 0 of panel 0 goes
  int64_t c_pixel, c_block;
  int64_t pixels;
  Activation activation;
};

// An epilogue that does not fit the registers: the tiles just stored are read again.
void finish_tiles(const Gemm& call, int64_t block, int64_t blocks) {
  for (int64_t b = block; b < block + blocks; ++b)
    finish(call.activation, call.c + b * call.c_block, call.c_pixel,
           call.residual ? call.residual + b * call.residual_block : nullptr, call.residual_pixel,
           call.pixels, smaller(kChannelBlock, call.channels_out - b * kChannelBlock));
}

// Panels outside, pixels inside: a panel of weights is read from L2 once and stays in L1.
void gemm(const Gemm& call) {
  if (call.pixels == 0) return;
  const bool in_registers = is_clamp(call.activation) &&
                            (call.residual == nullptr || call.activation == Activation::none);
  const bool in_tiles = call.residual == nullptr && is_applied_to_tiles(call.activation);
  const int64_t count = ceil_div(call.pixels, kTileRows);  // as equal as they can be
  const int64_t fewer = call.pixels / count, longer = call.pixels - count * fewer;
  static constexpr float kNoBias[kTileBlocks * kChannelBlock] = {};
  const int64_t b_panel = call.b_panel != 0 ? call.b_panel : call.depth * kChannelBlock;
  for (int64_t block = call.first_block; block < call.last_block; block += kTileBlocks) {
    const int64_t blocks = smaller(kTileBlocks, call.last_block - block);
    GemmTiles tiles{};
    tiles.a = call.a;
    tiles.a_block = call.a_block;
    tiles.depth = call.depth;
    tiles.b = call.weights.panels + block * b_panel;
    tiles.b_panel = b_panel;
    tiles.bias = call.weights.bias ? call.weights.bias + block * kChannelBlock : kNoBias;
    tiles.c = call.c + block * call.c_block;
    tiles.c_pixel = call.c_pixel;
    tiles.c_block = call.c_block;
    if (in_registers && call.residual != nullptr)
      tiles.residual = call.residual + block * call.residual_block;
    tiles.residual_pixel = call.residual_pixel;
    tiles.residual_block = call.residual_block;
    tiles.channels = smaller(blocks * kChannelBlock, call.channels_out - block * kChannelBlock);
    tiles.ahead = tiles.b + larger(kAheadFloats, blocks * b_panel);
    tiles.ahead_lines = ceil_div(kChannelBlock, count);
    tiles.bounds = clamp_of(in_registers ? call.activation : Activation::none);
    tiles.smooth = in_tiles ? call.activation : Activation::none;
    auto run = [&](int64_t rows, int64_t times) {
      if (times == 0) return;
      tiles.count = times;
      (blocks == kTileBlocks ? gemm_tiles_of<kTileBlocks>(rows) : gemm_tiles_of<1>(rows))(tiles);
      tiles.ahead += times * tiles.ahead_floats();
      tiles.a += rows * times * kChannelBlock;
      tiles.c += rows * times * call.c_pixel;
      if (tiles.residual != nullptr) tiles.residual += rows * times * call.residual_pixel;
    };
    run(fewer + 1, longer);
    run(fewer, count - longer);
    if (!in_registers && !in_tiles) finish_tiles(call, block, blocks);
  }
}

// [pixel][channels] -> [blocks(channels)][pixel][16]. The lanes beyond `channels` are left
// unwritten: gemm_tiles() reads exactly K channels.
void block_pixels(const float* x, Layout layout, int64_t pixels, int64_t channels, float* blocks,
                  int64_t block_stride) {
  for (int64_t first = 0; first < channels; first += kChannelBlock) {
    const int64_t count = smaller(kChannelBlock, channels - first);
    const float* from = x + first / kChannelBlock * layout.block;
    float* to = blocks + first / kChannelBlock * block_stride;
    if (count == kChannelBlock) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += layout.pixel, to += kChannelBlock)
        FASTDW_UNROLL for (int lane = 0; lane < kChannelBlock; lane += Vec::lanes)
          Vec::load(from + lane).store(to + lane);
    } else {
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += layout.pixel, to += kChannelBlock)
        for (int64_t lane = 0; lane < count; lane += Vec::lanes)
          Vec::load(from + lane, smaller(Vec::lanes, count - lane)).store(to + lane);
    }
  }
}

}  // namespace
}  // namespace fastdw
