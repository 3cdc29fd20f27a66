// How the depthwise convolution is dealt out to warps and lanes: what plan_depthwise_conv decides
// and what a lane makes of it.
#pragma once

#include "kernels/cuda/params.h"
#include "kernels/cuda/ptx.cuh"

namespace fastdw::cuda::depthwise {

constexpr int kWarp = 32;

// Elements from one image, row, column and pack of channels to the next.
struct Pitches {
  int64_t image, row, column, pack;
};

struct WalkParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  Pitches x_pitch, y_pitch;
  int64_t x_row_step, x_column_step, y_row_step, y_column_step;  // pitches times dilations
  int64_t batch;
  int32_t height, width, height_out, width_out;
  int32_t pad_left, pad_top, dilation_h, dilation_w, multiplier;
  bool planes;         // lanes run along the columns first, else along the packs
  uint32_t lane_step;  // from a lane to that of the next columns
  uint32_t packs, packs_per_warp, column_lanes;
  // A task is a warp's work: packs_per_warp packs of group_columns output columns and band_rows
  // output rows of one sublattice. The grid is [tasks of an image][images in y and z].
  uint32_t pack_groups, column_groups, bands, tasks;
  int32_t group_columns, band_rows;
};

template <int kKernelSize, int kStrideSize, int kColumnCount>
struct Geometry {
  static constexpr int kKernel = kKernelSize, kStride = kStrideSize, kColumns = kColumnCount;
  static constexpr int kTaps = kKernel * kKernel;
  static constexpr int kOwn = kColumns * kStride;                     // input columns of a lane
  static constexpr int kWindow = (kColumns - 1) * kStride + kKernel;  // under its output columns
  static constexpr int kUnderWay = (kKernel - 1) / kStride;           // output rows of partial sums
  static_assert((kKernel - 1) % kStride == 0, "an output row ends with the first row of a stride");
  static_assert(kWindow >= kOwn, "columns between the windows would be loaded for nothing");
};

// What a lane does, found once.
struct Task {
  uint32_t pack;  // of the lane
  int column_lane, pack_in_warp;
  uint32_t column_group, band;
  int64_t image;
  int offset_h, offset_w;  // of the sublattice
  bool dealt;              // the lane has a pack's place and a column's
  bool active;             // and the pack exists

  __device__ __forceinline__ Task(const WalkParams& params, uint32_t task) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int packs = static_cast<int>(params.packs_per_warp);
    const int columns = static_cast<int>(params.column_lanes);
    pack_in_warp = params.planes ? lane / columns : lane % packs;
    column_lane = params.planes ? lane % columns : lane / packs;
    const auto next_digit = [&task](uint32_t base) {
      const uint32_t digit = task % base;
      task /= base;
      return digit;
    };
    pack = next_digit(params.pack_groups) * params.packs_per_warp + pack_in_warp;
    column_group = next_digit(params.column_groups);
    band = next_digit(params.bands);
    offset_w = static_cast<int>(next_digit(params.dilation_w));
    offset_h = static_cast<int>(task);
    image = blockIdx.y + int64_t{gridDim.y} * blockIdx.z;
    dealt = pack_in_warp < packs && column_lane < columns;
    active = dealt && pack < params.packs;
    if (pack_in_warp >= packs) pack_in_warp = packs - 1;
  }
};

}  // namespace fastdw::cuda::depthwise
