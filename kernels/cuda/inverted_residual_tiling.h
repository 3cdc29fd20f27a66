// How a block is cut into thread blocks, and where each keeps what in shared memory. Plain numbers:
// chosen on the host (inverted_residual.cu), read by the kernel.
#pragma once

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/launch.h"

namespace fastdw::cuda {

constexpr int kSlabBytes = 128;      // hidden channels are taken in slabs: 64 of 2 bytes, 32 of 4
constexpr int kFilterStrip = 7;      // outputs of a row that a thread filters at once
constexpr int kWarpTileRows = 32;    // pixels that a warp multiplies at once
constexpr int kExpandColumns = 32;   // hidden channels that a warp expands at once
constexpr int kAffineArrays = 4;     // scale and bias of expand and of depthwise
constexpr int kSumPadding = 8;       // floats between rows of sums
constexpr int kRegionBytes = 80;     // what a thread block works on, in shared memory

// The windows that have code of their own; general is any.
enum class FilterKind : int32_t { k3s1, k3s2, k5s1, k5s2, general };

// Rows of so many 16-byte chunks, as who copies them counts: pieces of 2^across_log2 chunks.
struct ChunkPieces {
  int across_log2;
  Divisor pieces;
};

struct BlockTiling {
  // Outputs of a thread block: several whole images, or rows x columns of one.
  int images, rows, columns;
  int tiles_down, tiles_across;
  int64_t tiles;  // in all
  // The hidden pixels under it, of each image; `pitch` of them lie in a row, strips may overhang.
  int window_rows, window_columns, pitch;
  int row_step_log2;          // rows so far apart lie in different banks, see StripOrder
  int pixels_in, pixels_out;  // room for pixels, in whole warp tiles
  // Hidden channels: every one of `splits` thread blocks adds up some slabs.
  int slabs, slabs_per_split, splits;
  // Output channels: passes over the filtered slabs, shared out among thread blocks.
  int passes, passes_per_block, pass_groups;
  int hidden_slots, filtered_slots, project_slots;
  // Rows of x in shared memory, in elements, and bytes from the start of shared memory.
  int x_pitch;
  int x_at, hidden_at, filtered_at, expand_at, project_at, taps_at, raw_taps_at, affine_at,
      places_at, region_at, shared_bytes;
  // Whether rows can be moved 16 bytes at a time.
  bool wide_x, wide_expand, wide_taps, wide_project, wide_y, wide_affine;
  bool residual_in_tile;  // x is in shared memory where the residual is added
  // What would take divisions on the device.
  FilterKind filter;
  int taps, strips;
  ChunkPieces x_chunks;
  Divisor rows_by, columns_by;
  Divisor lines_by[2];  // of whole slabs, and of the last one: see StripOrder
};

struct InvertedResidualKernelParams {
  InvertedResidualParams block;
  BlockTiling tiling;
};

// One instance of the kernel.
struct BlockVariant {
  const char* name;
  void (*kernel)(InvertedResidualKernelParams);
  int rows, columns, threads;  // pixels, and output channels of a pass
  int blocks;                  // at once on a multiprocessor, for which there are registers
};

LaunchList plan_block_one_by_one(const InvertedResidualParams& params, const Device& device);

// Null kernel beyond the last. One translation unit a dtype.
BlockVariant inverted_residual_fp16(int index);
BlockVariant inverted_residual_bf16(int index);
BlockVariant inverted_residual_fp32(int index);
BlockVariant inverted_residual_tf32(int index);

}  // namespace fastdw::cuda
