// y = project(act(depthwise(act(expand(x))))) [+ x], or without expand: MobileNet V2 (arXiv
// 1801.04381, table 1) and V1 (arXiv 1704.04861, section 3.1) blocks. NHWC, weights as torch has
// them. A thread block takes a rectangle of output pixels; hidden channels pass in slabs of 128
// bytes a pixel: expanded by tensor cores into shared memory, filtered there, projected into sums
// in registers, while cp.async brings the next slab's weights. After Lavin (arXiv 2404.03617).
#pragma once

#include "kernels/cuda/inverted_residual_filter.cuh"

namespace fastdw::cuda::block {

template <class Math_, class T_, int kWarpsDown_, int kWarpsAcross_, int kN_, int kBlocks_>
struct Shape {
  using Math = Math_;
  using T = T_;
  static constexpr int kM = kWarpTileRows / kFragmentRows, kN = kN_;
  static constexpr int kWarpsDown = kWarpsDown_;
  static constexpr int kWarps = kWarpsDown * kWarpsAcross_, kThreads = kWarps * 32;
  static constexpr int kBlocks = kBlocks_;  // at once on a multiprocessor: bounds the registers
  static constexpr int kRows = kWarpsDown * kWarpTileRows;
  static constexpr int kWarpColumns = kN * kFragmentColumns;
  static constexpr int kColumns = kWarpsAcross_ * kWarpColumns;
  static_assert(kN % 2 == 0, "multiply() takes output channels in pairs of 8");
  static_assert(kColumns % (2 * kPackLanes<T>) == 0, "stages of y: an even number of chunks");
};

template <class Shape>
struct Kernel {
  using T = typename Shape::T;
  using Math = typename Shape::Math;
  using Sums = float[Shape::kM][Shape::kN][4];
  static constexpr int kThreads = Shape::kThreads;

  const InvertedResidualParams& block;
  const BlockTiling& tiling;

  __device__ __forceinline__ explicit Kernel(const InvertedResidualKernelParams& params)
      : block(params.block), tiling(params.tiling) {
    if (thread() == 0) Region(block, tiling, blockIdx.x).store(region_words());
    clear_hidden();
    __syncthreads();
  }

  // Read anew where it is needed: in between its sizes would take registers.
  __device__ __forceinline__ Region::Words* region_words() const {
    return shared_at<Region::Words>(recomputed(tiling.region_at));
  }
  __device__ __forceinline__ Region region() const { return Region::load(region_words()); }
  __device__ __forceinline__ int pixels_in() const { return region().pixels_in; }
  __device__ __forceinline__ int64_t tile() const { return region().tile; }
  __device__ __forceinline__ int split() const { return region().split; }
  // Of the thread block: slabs and passes, from the first to before the last.
  __device__ __forceinline__ int first_slab() const { return split() * tiling.slabs_per_split; }
  __device__ __forceinline__ int end_of_slabs() const {
    return smaller(first_slab() + tiling.slabs_per_split, tiling.slabs);
  }
  __device__ __forceinline__ int first_pass() const {
    return region().group * tiling.passes_per_block;
  }
  __device__ __forceinline__ int end_of_passes() const {
    return smaller(first_pass() + tiling.passes_per_block, tiling.passes);
  }
  __device__ __forceinline__ bool is_first(int pass) const { return pass == first_pass(); }
  // Where a slab lies, and filtered; and its weights, which in later passes take turns.
  __device__ __forceinline__ int hidden_slot(int slab) const {
    return tiling.hidden_slots > 1 ? (slab - first_slab()) & 1 : 0;
  }
  __device__ __forceinline__ int filtered_slot(int slab) const {
    return tiling.filtered_slots > 1 ? slab - first_slab() : 0;
  }
  __device__ __forceinline__ int project_slot(int slab, int pass) const {
    const int from = first_slab(), later = pass - first_pass();
    return later == 0 ? 0 : (1 + (later - 1) * (end_of_slabs() - from) + slab - from) % 2;
  }
  __device__ __forceinline__ const T* first_pixel() const {
    return static_cast<const T*>(block.x) + region().first_pixel * block.channels_in;
  }
  __device__ __forceinline__ int channels_in() const {
    return static_cast<int>(block.channels_in);
  }

  __device__ __forceinline__ static int warp() { return thread() / 32; }
  __device__ __forceinline__ static int warp_row() {
    return warp() % Shape::kWarpsDown * kWarpTileRows;
  }
  __device__ __forceinline__ static int warp_column() {
    return warp() / Shape::kWarpsDown * Shape::kWarpColumns;
  }
  __device__ __forceinline__ int pixels_out() const {
    return tiling.images * tiling.rows * tiling.columns;
  }
  // Those of them that lie in lines of the images; a line may still end beyond them.
  __device__ __forceinline__ int outputs(const Region& region) const {
    const int rows_left = static_cast<int>(block.height_out) - region.row_out;
    return (tiling.images > 1 ? region.images * tiling.rows : smaller(tiling.rows, rows_left)) *
           tiling.columns;
  }
  __device__ __forceinline__ bool has_expand() const { return block.expand_weight != nullptr; }

  __device__ __forceinline__ PaddedTile<T> x_tile() const {
    return {shared_at<T>(tiling.x_at), tiling.x_pitch};
  }
  __device__ __forceinline__ int hidden_elements() const {
    return tiling.images * tiling.window_rows * tiling.pitch * kSlabPitch<T>;
  }
  __device__ __forceinline__ T* hidden(int slot) const {
    return shared_at<T>(tiling.hidden_at) + slot * hidden_elements();
  }
  __device__ __forceinline__ PaddedTile<T> filtered(int slot) const {
    return {shared_at<T>(tiling.filtered_at) + slot * tiling.pixels_out * kSlabPitch<T>,
            kSlabPitch<T>};
  }
  __device__ __forceinline__ PaddedTile<T> expand_weights() const {
    return {shared_at<T>(tiling.expand_at), tiling.x_pitch};
  }
  __device__ __forceinline__ PaddedTile<T> project_weights(int slot) const {
    return {shared_at<T>(tiling.project_at) + slot * Shape::kColumns * kSlabPitch<T>,
            kSlabPitch<T>};
  }
  __device__ __forceinline__ PixelPlace* places() const {
    return shared_at<PixelPlace>(tiling.places_at);
  }
  // Which of the thread blocks that share a tile this one is, in the order in which they end. Lies
  // over the places, which have been read by then.
  __device__ __forceinline__ unsigned* turn() const {
    return shared_at<unsigned>(tiling.places_at);
  }
  __device__ __forceinline__ float* affine(int slab, int array) const {
    return affine_of<T>(tiling, slab) + array * kSlab<T>;
  }

  // Output channels of a pass.
  __device__ __forceinline__ int columns_of(int pass) const {
    return smaller(static_cast<int>(block.channels_out) - pass * Shape::kColumns, Shape::kColumns);
  }
  // Hidden channels of a slab, and as many as whole steps of multiply() have.
  __device__ __forceinline__ int channels_of(int slab) const {
    return smaller(static_cast<int>(block.channels_hidden) - slab * kSlab<T>, kSlab<T>);
  }
  __device__ __forceinline__ int steps_of(int slab) const {
    return (channels_of(slab) + kStepDepth<T> - 1) / kStepDepth<T>;
  }

  __device__ __forceinline__ void run() const;
  __device__ __forceinline__ void clear_hidden() const;
  __device__ __forceinline__ void begin() const;
  __device__ __forceinline__ void copy_x() const;
  __device__ __forceinline__ void copy_x_slab(int slab, int slot) const;
  __device__ __forceinline__ void copy_constants(int slab) const;
  __device__ __forceinline__ void copy_expand_weights(int slab) const;
  __device__ __forceinline__ void copy_project_weights(int slab, int pass, int slot) const;
  __device__ __forceinline__ void transpose_taps(int slab) const;
  __device__ __forceinline__ void expand(int slab) const;
  __device__ __forceinline__ void put_hidden(float (&sums)[2][4][4], int slab, int row,
                                             int column) const;
  __device__ __forceinline__ void copy_and_filter(int slab, int pass) const;
  __device__ __forceinline__ void prepare_next(int slab, int pass) const;
  __device__ __forceinline__ void project(Sums& sums, int slab, int pass) const;
  __device__ __forceinline__ void finish(const Sums& sums, int pass) const;
  __device__ __forceinline__ PaddedTile<float> sum_tile() const;
  __device__ __forceinline__ float* part(int pass, int of_split, int row) const;
  __device__ __forceinline__ unsigned* counters(int pass) const;
  __device__ __forceinline__ bool share_part(const Region& region, int pass) const;
  template <int kLanes>
  __device__ __forceinline__ void load_sums(float (&values)[kLanes], int pass, int row,
                                            int column) const;
  template <int kLanes>
  __device__ __forceinline__ void store_results(const Region& region, int pass) const;
  template <int kLanes>
  __device__ __forceinline__ void store_result(const Region& region, float (&values)[kLanes],
                                               int row, int64_t channel) const;
};

}  // namespace fastdw::cuda::block

#include "kernels/cuda/inverted_residual_copies.cuh"
#include "kernels/cuda/inverted_residual_results.cuh"
#include "kernels/cuda/inverted_residual_slabs.cuh"
