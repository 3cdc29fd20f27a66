// The block kernel's way through the slabs of hidden channels.
#pragma once

#include "kernels/cuda/inverted_residual.cuh"

namespace fastdw::cuda::block {

template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::expand(int slab) const {
  const int down = (pixels_in() + kWarpTileRows - 1) / kWarpTileRows;
  static_assert(kSlab<T> <= 2 * kExpandColumns, "one or two warp tiles across");
  const int two = channels_of(slab) > kExpandColumns;
  const int steps = (tiling.x_pitch / kPackLanes<T> - 1) / 2;
#pragma unroll 1
  for (int i = warp(); i < down << two; i += Shape::kWarps) {
    const int row = (i >> two) * kWarpTileRows, column = (i & two) * kExpandColumns;
    float sums[2][4][4] = {};
    multiply<Math, T, 1>(sums, x_tile(), row, 0, expand_weights(), column, 0, steps);
    put_hidden(sums, slab, row, column);
  }
}

// Channels beyond the last become zero, whatever x held (0 x inf is NaN).
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::put_hidden(float (&sums)[2][4][4], int slab,
                                                          int row, int column) const {
  const Activate activate(block.expand.activation);
  const int left = channels_of(slab) - column, lane = thread() % 32;
  T* to[2][2];
  bool inside[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = load_shared(
          &places()[row + m * kFragmentRows + fragment::row(2 * half, lane)].hidden);
      inside[m][half] = place >= 0;
      to[m][half] = hidden(0) + place * kSlabPitch<T> + column + fragment::column(0, lane);
    }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int channel = n * kFragmentColumns + fragment::column(0, lane);
    const float* scales = affine(slab, 0) + column + channel;
    const float* biases = affine(slab, 1) + column + channel;
    float scale[2], bias[2], values[8];
    unpack(scale, load_shared(reinterpret_cast<const Pack<float, 2>*>(scales)));
    unpack(bias, load_shared(reinterpret_cast<const Pack<float, 2>*>(biases)));
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = fmaf(scale[i % 2], sums[i / 4][n][i % 4], bias[i % 2]);
    Pack<T, 2> rounded[4];
    activate.apply(rounded, values);
    if (left < kExpandColumns) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (channel + i % 2 >= left) rounded[i / 2].lane[i % 2] = from_float<T>(0.f);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_shared_if(reinterpret_cast<Pack<T, 2>*>(to[i / 2][i % 2] + n * kFragmentColumns),
                      rounded[i], inside[i / 2][i % 2]);
  }
}

template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::project(Sums& sums, int slab, int pass) const {
  if (warp_row() >= pixels_out() || warp_column() >= columns_of(pass)) return;
  multiply<Math, T, 1>(sums, filtered(filtered_slot(slab)), warp_row(), 0,
                       project_weights(project_slot(slab, pass)), warp_column(), 0,
                       steps_of(slab));
}

// Weights have one place each: those of the next slab are copied while this one is filtered, which
// does not read them.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_and_filter(int slab, int pass) const {
  const int from = first_slab(), to = end_of_slabs();
  if (slab + 1 < to) {
    copy_constants(slab + 1);
    if (has_expand())
      copy_expand_weights(slab + 1);
    else if (tiling.hidden_slots > 1 || slab < from)
      copy_x_slab(slab + 1, slab < from ? 0 : 1 - hidden_slot(slab));
  }
  if (slab < from) {
    if (has_expand()) copy_x();
    commit_copies();
    return;
  }
  copy_project_weights(slab, pass, 0);
  commit_copies();
  filter_slab<kThreads, T>([&] { return hidden(hidden_slot(slab)); },
                           [&] { return filtered(filtered_slot(slab)).data; }, block, tiling,
                           steps_of(slab), slab);
}

// What comes after this slab and can be made beside its projection.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::prepare_next(int slab, int pass) const {
  const int from = first_slab();
  const bool more = slab + 1 < end_of_slabs();
  if (is_first(pass) && more) {
    if (!has_expand() && tiling.hidden_slots == 1 && slab >= from) copy_x_slab(slab + 1, 0);
    transpose_taps(slab + 1);
    if (has_expand()) expand(slab + 1);
  } else if (more || pass + 1 < end_of_passes()) {
    copy_project_weights(more ? slab + 1 : from, more ? pass : pass + 1,
                         1 - project_slot(slab, pass));
  }
}

// The first pass expands, filters and projects every slab, the next slab's expansion along with
// this one's projection: two barriers a slab. In further passes, over further output channels, all
// slabs lie filtered in shared memory and only weights come, in turns into two places.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::run() const {
  begin();
#pragma unroll 1
  for (int pass = first_pass(); pass < end_of_passes(); ++pass) {
    Sums sums = {};
#pragma unroll 1
    for (int slab = first_slab() - (is_first(pass) ? 1 : 0); slab < end_of_slabs(); ++slab) {
      if (is_first(pass)) copy_and_filter(slab, pass);
      wait_for_copies<0>();
      __syncthreads();
      prepare_next(slab, pass);
      commit_copies();
      if (slab >= first_slab()) project(sums, slab, pass);
      if (is_first(pass)) {
        wait_for_copies<0>();
        __syncthreads();
      }
    }
    finish(sums, pass);
  }
}

}  // namespace fastdw::cuda::block
