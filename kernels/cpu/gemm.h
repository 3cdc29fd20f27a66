// Matrix product c[pixel][o] = act(bias[o] + sum_k a[pixel][k] b[k][o]) + residual[pixel][o].
// a: [blocks(K)][pixel][16], so that a pixel's step is a compile-time constant in the inner loop;
// NHWC input is brought into that form once per tile or band by block_pixels().
// b: panels of 16 output channels, [blocks(O)][K][16]. The register tile is Rows pixels by
// Blocks * 16 channels; each step of k broadcasts Rows values against Blocks * 16 weights.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct GemmTile {
  const float* a;
  int64_t a_block;  // floats from one 16-channel block of a to the next
  int64_t depth;    // K
  const float* b;
  int64_t b_panel;  // floats from one panel to the next
  const float* bias;
  const float* residual;  // or null; laid out as c
  float* c;
  int64_t c_row, c_block;  // floats from one pixel, and one block of 16 channels, to the next
  int64_t channels;        // output channels to store, at most Blocks * 16
  Clamp bounds;
};

template <int Rows, int Blocks>
__attribute__((noinline)) void gemm_tile(const GemmTile& tile) {
  constexpr int per_block = kChannelBlock / Vec::lanes;
  constexpr int vectors = Blocks * per_block;
  const int64_t c_row = tile.c_row, c_block = tile.c_block;
  Vec sum[Rows][vectors];
  auto offset = [&](int v) { return (v / per_block) * c_block + v % per_block * Vec::lanes; };
  auto valid = [&](int v) { return tile.channels - v * Vec::lanes; };

  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    const Vec start = Vec::load(tile.bias + v * Vec::lanes);
    FASTDW_UNROLL for (int row = 0; row < Rows; ++row) sum[row][v] = start;
  }
  if (tile.residual != nullptr) {
    FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
      const float* add = tile.residual + offset(v);
      const int64_t count = valid(v);
      if (count >= Vec::lanes) {
        FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
          sum[row][v] = sum[row][v] + Vec::load(add + row * c_row);
      } else if (count > 0) {
        FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
          sum[row][v] = sum[row][v] + Vec::load(add + row * c_row, count);
      }
    }
  }

  const float* a_block = tile.a;
  const float* b = tile.b;
  for (int64_t left = tile.depth; left > 0; left -= kChannelBlock, a_block += tile.a_block) {
    const float* a = a_block;
    const float* a_end = a + smaller(left, kChannelBlock);
    // Twice unrolled: the loop's own instructions compete with the FMAs for ports 0 and 5 (Intel).
    _Pragma("GCC unroll 2") for (; a != a_end; ++a) {
      Vec weight[vectors];
      FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
        weight[v] = Vec::load(b + (v / per_block) * tile.b_panel + v % per_block * Vec::lanes);
      b += kChannelBlock;
      FASTDW_UNROLL for (int row = 0; row < Rows; ++row) {
        const Vec pixel = Vec::broadcast(a + row * kChannelBlock);
        FASTDW_UNROLL for (int v = 0; v < vectors; ++v)
          sum[row][v] = fma(pixel, weight[v], sum[row][v]);
      }
    }
  }

  const VecClamp clamped(tile.bounds);
  FASTDW_UNROLL for (int v = 0; v < vectors; ++v) {
    float* out = tile.c + offset(v);
    const int64_t count = valid(v);
    if (count >= Vec::lanes) {
      FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
        clamped(sum[row][v]).store(out + row * c_row);
    } else if (count > 0) {
      FASTDW_UNROLL for (int row = 0; row < Rows; ++row)
        clamped(sum[row][v]).store(out + row * c_row, count);
    }
  }
}

using GemmTileFunction = void (*)(const GemmTile&);

// The tile of `rows` pixels, 1 <= rows <= kTileRows.
template <int Blocks, int Rows = kTileRows>
FASTDW_INLINE GemmTileFunction gemm_tile_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return gemm_tile<1, Blocks>;
  } else {
    return rows == Rows ? gemm_tile<Rows, Blocks> : gemm_tile_of<Blocks, Rows - 1>(rows);
  }
}

struct Gemm {
  const float* a;
  int64_t a_block;
  PointwiseWeights weights;
  int64_t depth, channels_out;
  int64_t first_block, last_block;  // the panels to compute
  const float* residual;
  float* c;  // where pixel 0 of panel 0 goes
  int64_t c_row, c_block;
  int64_t pixels;
  Activation activation;
};

// Panels outside, pixels inside: a panel of weights is read from L2 once and stays in L1.
void gemm(const Gemm& call) {
  const bool in_registers = is_clamp(call.activation) &&
                            (call.residual == nullptr || call.activation == Activation::none);
  const int64_t tiles = ceil_div(call.pixels, kTileRows);  // as equal as they can be
  const int64_t fewer = tiles > 0 ? call.pixels / tiles : 0;
  const int64_t longer_tiles = call.pixels - tiles * fewer;
  for (int64_t block = call.first_block; block < call.last_block; block += kTileBlocks) {
    const int64_t blocks = smaller(kTileBlocks, call.last_block - block);
    GemmTile tile{};
    tile.a_block = call.a_block;
    tile.depth = call.depth;
    tile.b = call.weights.panels + block * call.depth * kChannelBlock;
    tile.b_panel = call.depth * kChannelBlock;
    tile.bias = call.weights.bias + block * kChannelBlock;
    tile.c_row = call.c_row;
    tile.c_block = call.c_block;
    tile.channels = smaller(blocks * kChannelBlock, call.channels_out - block * kChannelBlock);
    tile.bounds = clamp_of(in_registers ? call.activation : Activation::none);
    for (int64_t index = 0, pixel = 0; index < tiles; ++index) {
      const int64_t rows = fewer + (index < longer_tiles);
      const int64_t to = pixel * call.c_row + block * call.c_block;
      tile.a = call.a + pixel * kChannelBlock;
      tile.c = call.c + to;
      tile.residual = in_registers && call.residual != nullptr ? call.residual + to : nullptr;
      (blocks == kTileBlocks ? gemm_tile_of<kTileBlocks>(rows) : gemm_tile_of<1>(rows))(tile);
      pixel += rows;
      if (in_registers) continue;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = to + b * call.c_block;
        finish(call.activation, call.c + at, call.residual ? call.residual + at : nullptr, rows,
               call.c_row, smaller(kChannelBlock, tile.channels - b * kChannelBlock));
      }
    }
  }
}

// [pixel][channels] -> [blocks(channels)][pixel][16]. The lanes beyond `channels` are left
// unwritten: gemm_tile() reads exactly K channels.
void block_pixels(const float* x, int64_t pixels, int64_t channels, float* blocks,
                  int64_t block_stride) {
  for (int64_t first = 0; first < channels; first += kChannelBlock) {
    const int64_t count = smaller(kChannelBlock, channels - first);
    const float* from = x + first;
    float* to = blocks + first / kChannelBlock * block_stride;
    if (count == kChannelBlock) {
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += channels, to += kChannelBlock)
        FASTDW_UNROLL for (int lane = 0; lane < kChannelBlock; lane += Vec::lanes)
          Vec::load(from + lane).store(to + lane);
    } else {
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += channels, to += kChannelBlock)
        for (int64_t lane = 0; lane < count; lane += Vec::lanes)
          Vec::load(from + lane, smaller(Vec::lanes, count - lane)).store(to + lane);
    }
  }
}

}  // namespace
}  // namespace fastdw
