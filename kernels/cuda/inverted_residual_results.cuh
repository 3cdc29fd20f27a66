// The block kernel's sums on their way to y: through shared memory to whole rows, added up over
// splits, scaled, activated, and with the residual rounded once.
#pragma once

#include "kernels/cuda/inverted_residual.cuh"

namespace fastdw::cuda::block {

// Lies over the tiles of which the last has been read. Neighbouring rows begin 32 bytes apart in
// the banks: fragments are written without conflicts.
template <class Shape>
__device__ __forceinline__ PaddedTile<float> Kernel<Shape>::sum_tile() const {
  return {shared_at<float>(tiling.hidden_at), Shape::kColumns + kSumPadding};
}

// Row of the sums that one of the splits has left in the workspace.
template <class Shape>
__device__ __forceinline__ float* Kernel<Shape>::part(int pass, int of_split, int row) const {
  const int64_t first = ((tile() * tiling.passes + pass) * tiling.splits + of_split) * pixels_out();
  return reinterpret_cast<float*>(static_cast<char*>(block.workspace) + kCounterBytes) +
         (first + row) * Shape::kColumns;
}

// Whether this thread block came last, and may add up the sums of all.
template <class Shape>
__device__ __forceinline__ bool Kernel<Shape>::share_part(int pass) const {
  using Four = Pack<float, 4>;
  const int fours = (columns_of(pass) + 3) / 4;
  for (int i = thread(); i < pixels_out() * fours; i += kThreads) {
    const int row = i / fours, column = (i - row * fours) * 4;
    store_global_if(reinterpret_cast<Four*>(part(pass, split(), row) + column),
                    load_shared(reinterpret_cast<const Four*>(sum_tile().element(row, column))),
                    true);
  }
  __syncthreads();
  unsigned* counter = static_cast<unsigned*>(block.workspace) + tile() * tiling.passes + pass;
  unsigned* earlier = shared_at<unsigned>(tiling.hidden_at);
  if (thread() == 0) store_shared(earlier, arrive(counter));
  __syncthreads();
  const bool last = load_shared(earlier) + 1 == static_cast<unsigned>(tiling.splits);
  store_global_if(counter, 0u, last && thread() == 0);
  return last;
}

template <class Shape>
template <int kLanes>
__device__ __forceinline__ void Kernel<Shape>::load_sums(float (&values)[kLanes], int pass,
                                                         int row, int column) const {
  constexpr int kPart = kLanes < 4 ? 1 : 4;
  using Part = Pack<float, kPart>;
#pragma unroll
  for (int i = 0; i < kLanes; i += kPart) {
    float sums[kPart] = {};
    if (tiling.splits == 1) {
      unpack(sums, load_shared(reinterpret_cast<const Part*>(sum_tile().element(row, column + i))));
    } else {
      for (int other = 0; other < tiling.splits; ++other) {
        float more[kPart];
        unpack(more, load_global_coherent(
                         reinterpret_cast<const Part*>(part(pass, other, row) + column + i)));
#pragma unroll
        for (int j = 0; j < kPart; ++j) sums[j] += more[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kPart; ++j) values[i + j] = sums[j];
  }
}

template <int kLanes>
__device__ __forceinline__ void load_channels(float (&values)[kLanes], const float* from,
                                              int64_t channel, float otherwise) {
  constexpr int kPart = kLanes < 4 ? 1 : 4;
#pragma unroll
  for (int i = 0; i < kLanes; i += kPart) {
    Pack<float, kPart> part{};
    if (from != nullptr)
      part = load_global(reinterpret_cast<const Pack<float, kPart>*>(from + channel + i));
#pragma unroll
    for (int j = 0; j < kPart; ++j) values[i + j] = from == nullptr ? otherwise : part.lane[j];
  }
}

// kLanes columns a thread: whole packs, or one by one.
template <class Shape>
template <int kLanes>
__device__ __forceinline__ void Kernel<Shape>::store_results(int pass) const {
  const Activate activate(block.project.activation);
  const int across = (columns_of(pass) + kLanes - 1) / kLanes;
#pragma unroll 1
  for (int i = thread(); i < pixels_out() * across; i += kThreads) {
    const int row = i / across, column = (i - row * across) * kLanes;
    const int line = row / tiling.columns, column_out = region.column_out + row % tiling.columns;
    const int image = line / tiling.rows, row_out = region.row_out + line % tiling.rows;
    const bool inside = image < region.images && row_out < block.height_out &&
                        column_out < block.width_out;
    const int64_t channel = static_cast<int64_t>(pass) * Shape::kColumns + column;
    const int64_t pixel =
        ((region.image + image) * block.height_out + row_out) * block.width_out + column_out;
    const int64_t offset = inside ? pixel * block.channels_out + channel : 0;
    float values[kLanes], scale[kLanes], bias[kLanes];
    load_sums(values, pass, row, column);
    load_channels(scale, block.project.scale, channel, 1.f);
    load_channels(bias, block.project.bias, channel, 0.f);
#pragma unroll
    for (int j = 0; j < kLanes; ++j) values[j] = fmaf(scale[j], values[j], bias[j]);
    activate.apply(values);
    if (block.residual) {  // input and output pixels are the same ones
      using Lanes = Pack<T, kLanes>;
      const int pixel_in =
          (image * region.rows + row_out - region.row) * region.columns + column_out -
          region.column;
      const T* held = x_tile().data + (inside ? pixel_in * tiling.x_pitch : 0) + channel;
      const T* other = static_cast<const T*>(block.x) + offset;
      const Lanes x = tiling.residual_in_tile
                          ? load_shared(reinterpret_cast<const Lanes*>(held))
                          : load_global_or_zero(reinterpret_cast<const Lanes*>(other), inside);
#pragma unroll
      for (int j = 0; j < kLanes; ++j) values[j] += to_float(x.lane[j]);
    }
    store_global_if(reinterpret_cast<Pack<T, kLanes>*>(static_cast<T*>(block.y) + offset),
                    pack<T, kLanes>(values), inside);
  }
}

// Ends a pass over output channels.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::finish(const Sums& sums, int pass) const {
#pragma unroll
  for (int m = 0; m < Shape::kM; ++m)
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int row = warp_row() + m * kFragmentRows + fragment::row(i);
        const int column = warp_column() + n * kFragmentColumns + fragment::column(0);
        store_shared_if(reinterpret_cast<Pack<float, 2>*>(sum_tile().element(row, column)),
                        Pack<float, 2>{{sums[m][n][i], sums[m][n][i + 1]}}, row < pixels_out());
      }
  __syncthreads();
  if (tiling.splits > 1 && !share_part(pass)) return;
  if (tiling.wide_y)
    store_results<kPackLanes<T>>(pass);
  else
    store_results<1>(pass);
}

}  // namespace fastdw::cuda::block
