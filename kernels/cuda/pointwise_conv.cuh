// y[p][o] = act(scale[o] sum_k x[p][k] w[o][k] + bias[o]) + residual[p][o], or its mean over an
// image's pixels. x [pixels][K], w [N][K], y [pixels][N]. A thread block makes a tile of pixels by
// output channels: slices of 64 bytes of k pass through a ring of cp.async stages in shared memory,
// warps multiply them, and the sums go through shared memory to whole rows. Few tiles: K is split,
// and the last thread block to finish a tile adds the parts up in order (Osama et al. 2023).
#pragma once

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/mma.cuh"

namespace fastdw::cuda {

// Rows are taken in groups (all pixels, the images of one tile, or the pixels of one image), whole
// tiles of a group after one another.
struct PointwiseKernelParams {
  const void *x, *weight, *residual;
  void* y;
  Epilogue epilogue;
  int64_t pixels, channels_in, channels_out;
  int64_t group_rows, tiles_per_group, column_tiles;
  int64_t slices, slices_per_split;
  int splits;
  int64_t residual_stride;   // channels_out, or 0: the same for all pixels
  bool wide_rows;            // rows of y and residual are whole packs
  int64_t pixels_per_image;  // with a pool, else 0
  unsigned* counters;        // with splits: one a tile
  float* partial_sums;       // with splits, or of a pool over images of several tiles
};

namespace pointwise {

constexpr int kSliceChunks = 4;
constexpr int kStages = 4;

template <class T_, class Math_, int kRows_, int kColumns_, int kWarpRows, int kWarpColumns,
          bool kWhole_>
struct Tiling {
  using T = T_;
  using Math = Math_;
  static constexpr bool kWhole = kWhole_;  // rows of x and w are whole chunks
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kDepth = kSliceChunks * kPackLanes<T>;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = kRows / kWarpRows * kWarpsAcross * 32;
  static constexpr int kM = kWarpRows / kFragmentRows, kN = kWarpColumns / kFragmentColumns;
  static_assert(kColumns <= kThreads, "a thread a column where columns are summed");

  using Tile = SharedTile<T, kDepth>;
  static constexpr int kStageBytes = Tile::bytes(kRows + kColumns);
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = SumTile<kColumns>::bytes(kRows);
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;

  // On a multiprocessor, by its shared memory (164 KiB, 1 KiB more a block) and registers (128 a
  // thread).
  static constexpr int kBlocksByShared = 164 * 1024 / (kSharedBytes + 1024);
  static constexpr int kBlocksByRegisters = 65536 / (kThreads * (kM * kN >= 16 ? 128 : 96));
  static constexpr int kBlocks =
      kBlocksByShared < kBlocksByRegisters ? kBlocksByShared : kBlocksByRegisters;
};

// kRows rows, of which `rows` exist, by one slice of k. Zeros beyond both.
template <class Tiling, int kRows>
__device__ __forceinline__ void copy_rows(const typename Tiling::Tile& tile,
                                          const typename Tiling::T* from, int rows, int64_t first_k,
                                          int64_t depth) {
  using T = typename Tiling::T;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (Tiling::kWhole) {
    constexpr int kRowsAtOnce = Tiling::kThreads / kSliceChunks;
    const int chunk = thread % kSliceChunks;
    const int64_t k = first_k + chunk * kPackLanes<T>;
#pragma unroll
    for (int first_row = 0; first_row < kRows; first_row += kRowsAtOnce) {
      const int row = first_row + thread / kSliceChunks;
      const bool inside = row < rows && k < depth;
      if (kRows % kRowsAtOnce == 0 || row < kRows)
        copy_async(tile.chunk(row, chunk), inside ? from + row * depth + k : from, inside);
    }
  } else {
#pragma unroll 4
    for (int index = thread; index < kRows * Tiling::kDepth; index += Tiling::kThreads) {
      const int row = index / Tiling::kDepth, column = index % Tiling::kDepth;
      const int64_t k = first_k + column;
      const bool inside = row < rows && k < depth;
      store_shared(tile.element(row, column),
                   load_global_or_zero(inside ? from + row * depth + k : from, inside));
    }
  }
}

template <class Tiling>
struct Block {
  using T = typename Tiling::T;
  using Tile = typename Tiling::Tile;
  using Sums = float[Tiling::kM][Tiling::kN][4];

  const PointwiseKernelParams& params;
  int64_t tile, first_row, first_column;
  int rows;  // those that exist

  __device__ __forceinline__ explicit Block(const PointwiseKernelParams& params)
      : params(params), tile(blockIdx.x) {
    const int64_t row_tile = tile / params.column_tiles;
    const int64_t group = row_tile / params.tiles_per_group;
    const int64_t inside_group = row_tile % params.tiles_per_group * Tiling::kRows;
    first_row = group * params.group_rows + inside_group;
    first_column = tile % params.column_tiles * Tiling::kColumns;
    int64_t left = params.group_rows - inside_group;
    if (left > params.pixels - first_row) left = params.pixels - first_row;
    rows = left < Tiling::kRows ? static_cast<int>(left) : Tiling::kRows;
  }

  __device__ __forceinline__ static int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / Tiling::kWarpsAcross * Tiling::kM * kFragmentRows;
  }
  __device__ __forceinline__ static int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % Tiling::kWarpsAcross * Tiling::kN *
           kFragmentColumns;
  }

  __device__ __forceinline__ static T* stage(int index) {
    return reinterpret_cast<T*>(dynamic_shared_memory() + index * Tiling::kStageBytes);
  }

  __device__ __forceinline__ void copy_slice(int64_t slice, int to) const {
    const int64_t depth = params.channels_in, first_k = slice * Tiling::kDepth;
    const T* x = static_cast<const T*>(params.x) + first_row * depth;
    const T* weight = static_cast<const T*>(params.weight) + first_column * depth;
    const int64_t columns = params.channels_out - first_column;
    const Tile a{stage(to)}, b{stage(to) + Tiling::kRows * Tiling::kDepth};
    copy_rows<Tiling, Tiling::kRows>(a, x, rows, first_k, depth);
    copy_rows<Tiling, Tiling::kColumns>(
        b, weight, columns < Tiling::kColumns ? static_cast<int>(columns) : Tiling::kColumns,
        first_k, depth);
  }

  __device__ __forceinline__ void multiply_slices(Sums& sums) const {
    const int64_t first = blockIdx.y * params.slices_per_split;
    int64_t left = params.slices - first;
    if (left > params.slices_per_split) left = params.slices_per_split;
    const int slices = static_cast<int>(left);
#pragma unroll
    for (int ahead = 0; ahead < kStages - 1; ++ahead) {
      if (ahead < slices) copy_slice(first + ahead, ahead);
      commit_copies();
    }
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // the slice has come, and all have done with the one before it
      const int ahead = slice + kStages - 1;
      if (ahead < slices) copy_slice(first + ahead, ahead % kStages);
      commit_copies();
      const Tile a{stage(slice % kStages)};
      const Tile b{a.data + Tiling::kRows * Tiling::kDepth};
      multiply<typename Tiling::Math, T>(sums, a, warp_row(), 0, b, warp_column(), 0,
                                         kSliceChunks / 2);
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  // A pack of partial sums of this tile; neighbouring threads' packs are neighbours.
  __device__ __forceinline__ Pack<float, 4>* partial(int split, int m, int n) const {
    const int64_t part = split * static_cast<int64_t>(gridDim.x) + tile;
    const int64_t index = (part * Tiling::kM + m) * Tiling::kN + n;
    return reinterpret_cast<Pack<float, 4>*>(params.partial_sums) + index * Tiling::kThreads +
           threadIdx.x;
  }

  // Whether this thread block came last and has the sums of all.
  __device__ __forceinline__ bool add_up_splits(Sums& sums) const {
#pragma unroll
    for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
      for (int n = 0; n < Tiling::kN; ++n)
        store_global_if(partial(blockIdx.y, m, n), pack<float, 4>(sums[m][n]), true);
    __syncthreads();
    unsigned* earlier = reinterpret_cast<unsigned*>(dynamic_shared_memory());
    if (threadIdx.x == 0) store_shared(earlier, arrive(params.counters + tile));
    __syncthreads();
    if (load_shared(earlier) + 1 != static_cast<unsigned>(params.splits)) return false;
    __syncthreads();  // all have read it: the sums come to lie there
    store_global_if(params.counters + tile, 0u, threadIdx.x == 0);
#pragma unroll 1
    for (int split = 0; split < params.splits; ++split)
#pragma unroll
      for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
        for (int n = 0; n < Tiling::kN; ++n) {
          float part[4];
          unpack(part, load_global_coherent(partial(split, m, n)));
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] = (split == 0 ? 0.f : sums[m][n][i]) + part[i];
        }
    return true;
  }

  __device__ __forceinline__ static SumTile<Tiling::kColumns> sum_tile() {
    return {reinterpret_cast<float*>(dynamic_shared_memory())};
  }

  __device__ __forceinline__ static void put_sums(const Sums& sums) {
#pragma unroll
    for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
      for (int n = 0; n < Tiling::kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const int row = warp_row() + m * kFragmentRows + fragment::row(i);
          const int column = warp_column() + n * kFragmentColumns + fragment::column(0);
          store_shared(reinterpret_cast<Pack<float, 2>*>(sum_tile().element(row, column)),
                       Pack<float, 2>{{sums[m][n][i], sums[m][n][i + 1]}});
        }
    __syncthreads();
  }

  // kLanes columns a thread: whole packs, or one by one.
  template <int kLanes>
  __device__ __forceinline__ void store_rows() const;

  __device__ __forceinline__ void store_means() const;
};

// kLanes values of one channel each, 4 at a time where there are as many.
template <int kLanes>
__device__ __forceinline__ void load_channels(float (&values)[kLanes], const float* from,
                                              float otherwise, bool inside) {
  constexpr int kPart = kLanes < 4 ? 1 : 4;
#pragma unroll
  for (int i = 0; i < kLanes; i += kPart) {
    Pack<float, kPart> part{};
    if (from != nullptr)
      part = load_global_or_zero(reinterpret_cast<const Pack<float, kPart>*>(from + i), inside);
#pragma unroll
    for (int j = 0; j < kPart; ++j) values[i + j] = from == nullptr ? otherwise : part.lane[j];
  }
}

template <class Tiling>
template <int kLanes>
__device__ __forceinline__ void Block<Tiling>::store_rows() const {
  constexpr int kAcross = Tiling::kColumns / kLanes, kDown = Tiling::kThreads / kAcross;
  const int thread = static_cast<int>(threadIdx.x), column = thread % kAcross * kLanes;
  const int64_t channel = first_column + column;
  const bool inside_columns = channel < params.channels_out;
  const Epilogue& epilogue = params.epilogue;
  const Activate activate(epilogue.activation);
  const int64_t readable = inside_columns ? channel : 0;
  float scale[kLanes]{}, bias[kLanes]{};
  load_channels(scale, epilogue.scale == nullptr ? nullptr : epilogue.scale + readable, 1.f,
                inside_columns);
  load_channels(bias, epilogue.bias == nullptr ? nullptr : epilogue.bias + readable, 0.f,
                inside_columns);
  constexpr int kPart = kLanes < 4 ? 1 : 4;
#pragma unroll 1
  for (int row = thread / kAcross; row < Tiling::kRows; row += kDown) {
    const bool inside = inside_columns && row < rows;
    const int64_t offset = inside ? (first_row + row) * params.channels_out + channel : 0;
    Pack<T, kLanes> residual{};
    if (params.residual != nullptr) {
      const int64_t row_offset = (first_row + row) * params.residual_stride;
      const T* from = static_cast<const T*>(params.residual) + (inside ? row_offset + channel : 0);
      residual = load_global_or_zero(reinterpret_cast<const Pack<T, kLanes>*>(from), inside);
    }
    float values[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; i += kPart) {
      const auto sums = load_shared(
          reinterpret_cast<const Pack<float, kPart>*>(sum_tile().element(row, column + i)));
#pragma unroll
      for (int j = 0; j < kPart; ++j) values[i + j] = sums.lane[j];
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i)
      values[i] = activate(fmaf(scale[i], values[i], bias[i])) + to_float(residual.lane[i]);
    T* to = static_cast<T*>(params.y) + offset;
    store_global_if(reinterpret_cast<Pack<T, kLanes>*>(to), pack<T, kLanes>(values), inside);
  }
}

// A thread a column and image: the sum over the image's rows of this tile, in order.
template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::store_means() const {
  constexpr int kImagesAtOnce = Tiling::kThreads / Tiling::kColumns;
  const int thread = static_cast<int>(threadIdx.x), column = thread % Tiling::kColumns;
  const int64_t channel = first_column + column, pixels = params.pixels_per_image;
  const bool inside = channel < params.channels_out;
  const float scale = scale_of(params.epilogue, inside ? channel : 0, inside);
  const float bias = bias_of(params.epilogue, inside ? channel : 0, inside);
  const Activate activate(params.epilogue.activation);
  for (int64_t image = thread / Tiling::kColumns; image * pixels < rows; image += kImagesAtOnce) {
    const int first = static_cast<int>(image * pixels);
    const int last = rows - first < pixels ? rows : first + static_cast<int>(pixels);
    float sum = 0.f;
#pragma unroll 4
    for (int row = first; row < last; ++row) {
      const float value = load_shared(sum_tile().element(row, column));
      sum += activate(fmaf(scale, value, bias));
      if (params.residual != nullptr) {
        const int64_t offset = (first_row + row) * params.residual_stride + channel;
        sum += to_float(load_global_or_zero(
            static_cast<const T*>(params.residual) + (inside ? offset : 0), inside));
      }
    }
    const bool whole = params.tiles_per_group == 1;
    const int64_t offset =
        (whole ? first_row / pixels + image : tile / params.column_tiles) * params.channels_out +
        channel;
    if (whole)
      store_global_if(static_cast<T*>(params.y) + offset,
                      from_float<T>(sum / static_cast<float>(pixels)), inside);
    else
      store_global_if(params.partial_sums + offset, sum, inside);
  }
}

template <class Tiling>
__device__ __forceinline__ void run_block(const PointwiseKernelParams& params) {
  const Block<Tiling> block(params);
  float sums[Tiling::kM][Tiling::kN][4] = {};
  block.multiply_slices(sums);
  if (params.splits > 1 && !block.add_up_splits(sums)) return;
  block.put_sums(sums);
  if (params.pixels_per_image > 0)
    block.store_means();
  else if (params.wide_rows)
    block.template store_rows<kPackLanes<typename Tiling::T>>();
  else
    block.template store_rows<1>();
}

}  // namespace pointwise
}  // namespace fastdw::cuda
