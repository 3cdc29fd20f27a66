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
  return static_cast<float*>(block.workspace) + (first + row) * Shape::kColumns;
}

// Two counters of the thread blocks that share a tile: those that came, and those whose sums are
// there.
template <class Shape>
__device__ __forceinline__ unsigned* Kernel<Shape>::counters(int pass) const {
  return block.counters + 2 * (tile() * tiling.passes + pass);
}

// Whether this thread block came last, and may add up the sums of all. It keeps its own and waits
// for the others', which are on their way.
template <class Shape>
__device__ __forceinline__ bool Kernel<Shape>::share_part(const Region& region,
                                                          int pass) const {
  using Four = Pack<float, 4>;
  const unsigned others = static_cast<unsigned>(tiling.splits) - 1;
  if (load_shared(turn()) == others) {
    if (thread() == 0) wait_for_arrivals(counters(pass) + 1, others);
    store_global_if(reinterpret_cast<Pack<unsigned, 2>*>(counters(pass)), Pack<unsigned, 2>{},
                    thread() == 0);
    __syncthreads();
    return true;
  }
  const int fours = (columns_of(pass) + 3) / 4;
  for (int i = thread(); i < outputs(region) * fours; i += kThreads) {
    const int row = i / fours, column = (i - row * fours) * 4;
    store_global_if(reinterpret_cast<Four*>(part(pass, split(), row) + column),
                    load_shared(reinterpret_cast<const Four*>(sum_tile().element(row, column))),
                    true);
  }
  __syncthreads();
  if (thread() == 0) arrive(counters(pass) + 1);
  return false;
}

template <class Shape>
template <int kLanes>
__device__ __forceinline__ void Kernel<Shape>::load_sums(float (&values)[kLanes], int pass,
                                                         int row, int column) const {
  using Lanes = Pack<float, kLanes>;
  const Lanes own = load_shared(reinterpret_cast<const Lanes*>(sum_tile().element(row, column)));
  unpack(values, own);
  if (tiling.splits == 1) return;
  float sums[kLanes] = {};
  for (int other = 0; other < tiling.splits; ++other) {
    Lanes part_of_sum = own;
    if (other != split())
      part_of_sum =
          load_global_coherent(reinterpret_cast<const Lanes*>(part(pass, other, row) + column));
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sums[i] += part_of_sum.lane[i];
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = sums[i];
}

template <int kLanes>
__device__ __forceinline__ void load_channels(float (&values)[kLanes], const float* from,
                                              int64_t channel, float otherwise) {
  Pack<float, kLanes> loaded{};
  if (from != nullptr)
    loaded = load_global(reinterpret_cast<const Pack<float, kLanes>*>(from + channel));
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = from == nullptr ? otherwise : loaded.lane[i];
}

// A thread keeps to its kLanes channels, of every so manieth output: 4, of which neighbours read
// neighbouring 16 bytes of sums, or one by one. 8 lanes read 128 bytes of a row, or 64 of two rows
// that are 2 apart: without bank conflicts.
template <class Shape>
template <int kLanes>
__device__ __forceinline__ void Kernel<Shape>::store_results(const Region& region,
                                                             int pass) const {
  const int across = (columns_of(pass) + kLanes - 1) / kLanes;
  const int wanted = across > 4 ? (across + 7) / 8 * 8 : across;
  const int lanes = smaller(wanted, kThreads), down = kThreads / lanes;
  if (thread() >= lanes * down) return;
  int first = thread() / lanes;
  if (lanes == 4) first = (first & ~3) | (first & 1) << 1 | (first >> 1 & 1);
#pragma unroll 1
  for (int lane = thread() % lanes; lane < across; lane += lanes) {
    const int64_t channel =
        static_cast<int64_t>(recomputed(pass)) * Shape::kColumns + lane * kLanes;
    float scale[kLanes], bias[kLanes];
    load_channels(scale, block.project.scale, channel, 1.f);
    load_channels(bias, block.project.bias, channel, 0.f);
    const int rows = outputs(region);
#pragma unroll 1
    for (int row = first; row < rows; row += down) {
      float values[kLanes];
      load_sums(values, pass, row, lane * kLanes);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = fmaf(scale[i], values[i], bias[i]);
      store_result(region, values, row, channel);
    }
  }
}

template <class Shape>
template <int kLanes>
__device__ __forceinline__ void Kernel<Shape>::store_result(const Region& region,
                                                            float (&values)[kLanes], int row,
                                                            int64_t channel) const {
  Activate(block.project.activation).apply(values);
  const auto line = static_cast<int>(tiling.columns_by.quotient(static_cast<uint32_t>(row)));
  const auto image = static_cast<int>(tiling.rows_by.quotient(static_cast<uint32_t>(line)));
  const int column_out = region.column_out + row - line * tiling.columns;
  const int row_out = region.row_out + line - image * tiling.rows;
  const bool inside = column_out < static_cast<int>(block.width_out);
  const int pixel = (image * static_cast<int>(block.height_out) + row_out) *
                        static_cast<int>(block.width_out) +
                    column_out;
  const int64_t offset =
      inside ? (region.first_output + pixel) * static_cast<int>(block.channels_out) + channel : 0;
  if (block.residual) {  // input and output pixels are the same ones
    using Lanes = Pack<T, kLanes>;
    const int pixel_in =
        (image * region.rows + row_out - region.row) * region.columns + column_out - region.column;
    const T* held = x_tile().data + (inside ? pixel_in * tiling.x_pitch : 0) + channel;
    const T* other = static_cast<const T*>(block.x) + offset;
    const Lanes x = tiling.residual_in_tile
                        ? load_shared(reinterpret_cast<const Lanes*>(held))
                        : load_global_or_zero(reinterpret_cast<const Lanes*>(other), inside);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] += to_float(x.lane[i]);
  }
  store_global_if(reinterpret_cast<Pack<T, kLanes>*>(static_cast<T*>(block.y) + offset),
                  pack<T, kLanes>(values), inside);
}

// Ends a pass over output channels.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::finish(const Sums& sums, int pass) const {
  if (tiling.splits > 1 && thread() == 0) store_shared(turn(), arrive(counters(pass)));
  const int lane = thread() % 32;
#pragma unroll
  for (int m = 0; m < Shape::kM; ++m)
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int row = warp_row() + m * kFragmentRows + fragment::row(i, lane);
        const int column = warp_column() + n * kFragmentColumns + fragment::column(0, lane);
        store_shared_if(reinterpret_cast<Pack<float, 2>*>(sum_tile().element(row, column)),
                        Pack<float, 2>{{sums[m][n][i], sums[m][n][i + 1]}}, row < pixels_out());
      }
  __syncthreads();
  const Region here = region();
  if (tiling.splits > 1 && !share_part(here, pass)) return;
  if (tiling.wide_y)
    store_results<4>(here, pass);
  else
    store_results<1>(here, pass);
}

}  // namespace fastdw::cuda::block
