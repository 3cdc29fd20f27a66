// What a thread block of the block kernel works on: its rectangle of pixels, tiles in shared memory
// whose rows have an odd number of 16-byte chunks (8 neighbouring rows lie in different banks), and
// copies into them.
#pragma once

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/inverted_residual_tiling.h"
#include "kernels/cuda/mma.cuh"

namespace fastdw::cuda::block {

template <class T>
constexpr int kSlab = kSlabBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kSlabPitch = kSlab<T> + kPackLanes<T>;
template <class T>
constexpr int kTapPitch = kSlab<T> + 4;  // fp32: transposing the taps meets no bank conflict

template <class T>
struct PaddedTile {
  T* data;
  int pitch;  // elements

  __device__ __forceinline__ int row_elements() const { return pitch; }
  __device__ __forceinline__ T* element(int row, int column) const {
    return data + row * pitch + column;
  }
  __device__ __forceinline__ T* chunk(int row, int index) const {
    return element(row, index * kPackLanes<T>);
  }
  __device__ __forceinline__ WidePack<T> load(int row, int index) const {
    return load_shared(reinterpret_cast<const WidePack<T>*>(chunk(row, index)));
  }
  __device__ __forceinline__ void store(int row, int index, const WidePack<T>& value) const {
    store_shared(reinterpret_cast<WidePack<T>*>(chunk(row, index)), value);
  }
};

template <class T>
__device__ __forceinline__ T* shared_at(int bytes) {
  return reinterpret_cast<T*>(dynamic_shared_memory() + bytes);
}

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }

// One chunk from global memory: of its elements the first `count`, then zeros. wide: whole chunks
// only, and aligned; then by cp.async.
template <class T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, int count, bool wide) {
  if (wide) {
    copy_async(to, from, count > 0);
    return;
  }
  WidePack<T> value;
#pragma unroll
  for (int i = 0; i < kPackLanes<T>; ++i)
    value.lane[i] = load_global_or_zero(i < count ? from + i : from, i < count);
  store_shared(reinterpret_cast<WidePack<T>*>(to), value);
}

// Who copies which chunk of a matrix in shared memory whose rows lie an odd number of chunks apart:
// 8 neighbouring lanes take 8, 4 or 2 chunks of so many rows that they meet no bank twice, and a
// warp whole sectors of global memory.
struct ChunkOrder {
  int across, pieces, count;  // of `count` places some lie outside

  __device__ __forceinline__ ChunkOrder(int rows, int chunks)
      : across(chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2),
        pieces((chunks + across - 1) / across),
        count((rows + 7) / 8 * 8 * pieces * across) {}

  __device__ __forceinline__ void find(int index, int& row, int& chunk) const {
    const int group = index / 8, lane = index % 8, first = group / across;
    row = first / pieces * 8 + lane / across * across + group % across;
    chunk = first % pieces * across + lane % across;
  }
};

// A matrix's first `rows` rows, `stride` apart, of `columns` elements; zeros in the rest of
// all_rows x all_chunks.
template <int kThreads, class T>
__device__ __forceinline__ void copy_matrix(const PaddedTile<T>& tile, const T* from,
                                            int64_t stride, int rows, int columns, int all_rows,
                                            int all_chunks, bool wide) {
  const ChunkOrder order(all_rows, all_chunks);
  for (int i = recomputed(thread()); i < order.count; i += kThreads) {
    int row, chunk;
    order.find(i, row, chunk);
    if (row >= all_rows || chunk >= all_chunks) continue;
    const int count = row < rows ? columns - chunk * kPackLanes<T> : 0;
    copy_chunk(tile.chunk(row, chunk),
               count > 0 ? from + row * stride + chunk * kPackLanes<T> : from, count, wide);
  }
}

// Where a pixel of x lies in the hidden tile, and in x, counted from the tile's first pixel.
struct alignas(8) PixelPlace {
  int hidden, global;
};

// Outputs of a thread block and the pixels of x under them, cut to the image.
struct Region {
  int64_t image;
  int images;
  int row_out, column_out;
  int row, column;        // first pixel of x
  int rows, columns;      // of x
  int below, beside;      // where that pixel lies in the window

  __device__ __forceinline__ Region(const InvertedResidualParams& block, const BlockTiling& tiling,
                                    unsigned tile) {
    const unsigned across = static_cast<unsigned>(tiling.tiles_across);
    const unsigned rows_of_tiles = static_cast<unsigned>(tiling.tiles_down);
    const unsigned down = tile / across;
    image = static_cast<int64_t>(down / rows_of_tiles) * tiling.images;
    images = smaller(tiling.images,
                     static_cast<int>(block.batch - image < tiling.images ? block.batch - image
                                                                          : tiling.images));
    row_out = static_cast<int>(down % rows_of_tiles) * tiling.rows;
    column_out = static_cast<int>(tile % across) * tiling.columns;
    const Window& window = block.window;
    const int64_t top = row_out * window.stride_h - window.pad_top;
    const int64_t left = column_out * window.stride_w - window.pad_left;
    cut(row, rows, below, top, tiling.window_rows, block.height);
    cut(column, columns, beside, left, tiling.window_columns, block.width);
  }

  __device__ __forceinline__ static void cut(int& first, int& count, int& skipped, int64_t from,
                                             int length, int64_t size) {
    const int64_t to = from + length < size ? from + length : size;
    const int64_t start = from > 0 ? from : 0;
    first = static_cast<int>(start);
    count = to > start ? static_cast<int>(to - start) : 0;
    skipped = static_cast<int>(start - from);
  }

  __device__ __forceinline__ int pixels_in() const { return images * rows * columns; }
};

}  // namespace fastdw::cuda::block
