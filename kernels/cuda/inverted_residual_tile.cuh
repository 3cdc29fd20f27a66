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

__device__ __forceinline__ int thread() { return thread_index(); }

// Of a slab [kAffineArrays][kSlab]: scale and bias of expand, then of depthwise. Slabs take turns
// in two halves.
template <class T>
__device__ __forceinline__ float* affine_of(const BlockTiling& tiling, int slab) {
  return shared_at<float>(tiling.affine_at) + slab % 2 * kAffineArrays * kSlab<T>;
}

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

// A slab's first `steps` steps of multiply(): 2, 4, 6 or 8 chunks.
__device__ __forceinline__ ChunkPieces slab_chunks(int steps) {
  ChunkPieces chunks;
  chunks.across_log2 = steps == 4 ? 3 : steps == 2 ? 2 : 1;
  chunks.pieces.by = steps == 3 ? 3 : 1;
  chunks.pieces.factor = 0x55555556;  // 2^32 / 3
  return chunks;
}

// Division by a slab's steps.
__device__ __forceinline__ Divisor slab_steps(int steps) {
  Divisor divisor;
  divisor.by = static_cast<uint32_t>(steps);
  divisor.factor = steps == 4 ? 1u << 30 : steps == 3 ? 0x55555556 : 1u << 31;
  return divisor;
}

// Who copies which chunk of a matrix in shared memory whose rows lie an odd number of chunks apart:
// 8 neighbouring lanes take 8, 4 or 2 chunks of so many rows that they meet no bank twice, and a
// warp whole sectors of global memory.
struct ChunkOrder {
  ChunkPieces chunks;
  int count;  // of `count` places some lie outside

  __device__ __forceinline__ ChunkOrder(int rows, const ChunkPieces& of_row)
      : chunks(of_row),
        count(((rows + 7) & ~7) * static_cast<int>(of_row.pieces.by) << of_row.across_log2) {}

  __device__ __forceinline__ void find(int index, int& row, int& chunk) const {
    const auto place = static_cast<uint32_t>(index);
    const uint32_t group = place / 8, lane = place % 8, log2 = chunks.across_log2;
    const uint32_t first = group >> log2, eight = chunks.pieces.quotient(first);
    const uint32_t inside = (1u << log2) - 1;
    row = static_cast<int>(eight * 8 + (lane & ~inside) + (group & inside));
    chunk = static_cast<int>(((first - eight * chunks.pieces.by) << log2) + (lane & inside));
  }
};

// A matrix's first `rows` rows, `stride` apart, of `columns` elements; zeros in the rest of
// all_rows x all_chunks.
template <int kThreads, class T>
__device__ __forceinline__ void copy_matrix(const PaddedTile<T>& tile, const T* from,
                                            int stride, int rows, int columns, int all_rows,
                                            int all_chunks, const ChunkPieces& pieces, bool wide) {
  const ChunkOrder order(all_rows, pieces);
#pragma unroll 1
  for (int i = thread(); i < order.count; i += kThreads) {
    int row, chunk;
    order.find(i, row, chunk);
    if (row >= all_rows || chunk >= all_chunks) continue;
    const int count = row < rows ? columns - chunk * kPackLanes<T> : 0;
    copy_chunk(tile.chunk(row, chunk),
               count > 0 ? from + (int64_t{row} * stride + chunk * kPackLanes<T>) : from, count,
               wide);
  }
}

// Where a pixel of x lies in the hidden tile, and in x, counted from the tile's first pixel.
struct alignas(8) PixelPlace {
  int hidden, global;
};

// Outputs of a thread block and the pixels of x under them, cut to the image. One thread finds it
// for all.
struct alignas(16) Region {
  int64_t image, first_output;  // the image's first pixel of y
  int64_t first_pixel;          // of x
  int64_t tile;
  int group, split;
  int images;
  int row_out, column_out;
  int row, column;    // of that pixel of x
  int rows, columns;  // of x
  int below, beside;  // where that pixel lies in the window
  int pixels_in;      // of all images

  Region() = default;

  // Thread blocks: splits next to one another, then groups of passes, then tiles.
  __device__ __forceinline__ Region(const InvertedResidualParams& block, const BlockTiling& tiling,
                                    unsigned index) {
    const unsigned splits = static_cast<unsigned>(tiling.splits);
    const unsigned groups = static_cast<unsigned>(tiling.pass_groups);
    const unsigned across = static_cast<unsigned>(tiling.tiles_across);
    const unsigned rows_of_tiles = static_cast<unsigned>(tiling.tiles_down);
    split = static_cast<int>(index % splits);
    group = static_cast<int>(index / splits % groups);
    const unsigned place = index / (splits * groups), down = place / across;
    tile = place;
    image = static_cast<int64_t>(down / rows_of_tiles) * tiling.images;
    images = smaller(tiling.images,
                     static_cast<int>(block.batch - image < tiling.images ? block.batch - image
                                                                          : tiling.images));
    row_out = static_cast<int>(down % rows_of_tiles) * tiling.rows;
    column_out = static_cast<int>(place % across) * tiling.columns;
    const Window& window = block.window;
    const int64_t top = row_out * window.stride_h - window.pad_top;
    const int64_t left = column_out * window.stride_w - window.pad_left;
    cut(row, rows, below, top, tiling.window_rows, block.height);
    cut(column, columns, beside, left, tiling.window_columns, block.width);
    first_output = image * block.height_out * block.width_out;
    first_pixel = (image * block.height + row) * block.width + column;
    pixels_in = images * rows * columns;
  }

  __device__ __forceinline__ static void cut(int& first, int& count, int& skipped, int64_t from,
                                             int length, int64_t size) {
    const int64_t to = from + length < size ? from + length : size;
    const int64_t start = from > 0 ? from : 0;
    first = static_cast<int>(start);
    count = to > start ? static_cast<int>(to - start) : 0;
    skipped = static_cast<int>(start - from);
  }

  using Words = Pack<uint32_t, 4>;
  static constexpr int kWords = 5;

  __device__ __forceinline__ void store(Words* to) const {
    Words words[kWords];
    __builtin_memcpy(words, this, sizeof(words));
#pragma unroll
    for (int i = 0; i < kWords; ++i) store_shared(to + i, words[i]);
  }

  __device__ __forceinline__ static Region load(const Words* from) {
    Words words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = load_shared(from + i);
    Region region;
    __builtin_memcpy(&region, words, sizeof(words));
    return region;
  }
};
static_assert(sizeof(Region) == kRegionBytes, "as the host leaves room for");

}  // namespace fastdw::cuda::block
