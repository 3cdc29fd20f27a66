// y[p][o] = act(scale[o] sum_k x[p][k] w[o][k] + bias[o]) + residual[p][o], or its mean over an
// image's pixels. x [pixels][K], w [N][K], y [pixels][N]. A thread block makes a tile of pixels by
// output channels: slices of k pass through a ring of cp.async stages in shared memory, warps
// multiply them, finish their sums in registers and hand them through shared memory to whole rows.
// Few tiles: groups of warps share the k of every slice and add up their sums at the end.
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
  int64_t group_rows;
  uint32_t tiles_per_group, column_tiles;
  int slices;
  int64_t residual_stride;   // channels_out, or 0: the same for all pixels
  bool wide_rows;            // rows of y and residual are whole packs
  int64_t pixels_per_image;  // with a pool, else 0
  float* tile_sums;          // of a pool over images of several tiles
};

namespace pointwise {

constexpr int kGroupChunks = 4;  // chunks of k that a group of warps takes of a slice
constexpr int kStages = 4;

template <class T_, class Math_, int kRows_, int kColumns_, int kWarpRows, int kWarpColumns,
          int kGroups_, bool kWhole_>
struct Tiling {
  using T = T_;
  using Math = Math_;
  static constexpr bool kWhole = kWhole_;  // rows of x and w are whole chunks
  static constexpr int kRows = kRows_, kColumns = kColumns_, kGroups = kGroups_;
  static constexpr int kChunks = kGroupChunks * kGroups, kDepth = kChunks * kPackLanes<T>;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kGroupThreads = kRows / kWarpRows * kWarpsAcross * 32;
  static constexpr int kThreads = kGroupThreads * kGroups;
  static constexpr int kM = kWarpRows / kFragmentRows, kN = kWarpColumns / kFragmentColumns;
  static_assert(kThreads / kChunks % 8 == 0, "a thread's rows of a slice lie 8 apart or more");

  using Tile = SharedTile<T, kDepth>;
  static constexpr int kStageBytes = Tile::bytes(kRows + kColumns);
  static constexpr int kGroupBytes = (kGroups - 1) * kGroupThreads * kM * kN * 16;
  static constexpr int kResultBytes = ResultTile<float, kColumns>::bytes(kRows);
  static constexpr int kEndBytes = kGroupBytes > kResultBytes ? kGroupBytes : kResultBytes;

  // On a multiprocessor, by registers.
  static constexpr int kBlocks = 65536 / (kThreads * (kM * kN >= 16 ? 128 : 96));
};

// kRows rows, of which `rows` exist, by one slice of k. Zeros beyond both.
template <class Tiling, int kRows>
__device__ __forceinline__ void copy_rows(const typename Tiling::Tile& tile,
                                          const typename Tiling::T* from, int rows, int first_k,
                                          int depth) {
  using T = typename Tiling::T;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (Tiling::kWhole) {
    constexpr int kRowsAtOnce = Tiling::kThreads / Tiling::kChunks;
    const int first_row = thread / Tiling::kChunks, chunk = thread % Tiling::kChunks;
    const int k = first_k + chunk * kPackLanes<T>, left = k < depth ? rows - first_row : 0;
    const T* source = from + static_cast<int64_t>(first_row) * depth + k;
    T* to = tile.chunk(first_row, chunk);
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsAtOnce) {
      if (kRows % kRowsAtOnce != 0 && i + first_row >= kRows) break;
      const bool inside = i < left;
      copy_async(to + i * Tiling::Tile::row_elements(),
                 inside ? source + int64_t{i} * depth : from, inside);
    }
  } else {
#pragma unroll 4
    for (int index = thread; index < kRows * Tiling::kDepth; index += Tiling::kThreads) {
      const int row = index / Tiling::kDepth, column = index % Tiling::kDepth;
      const int k = first_k + column;
      const bool inside = row < rows && k < depth;
      const T* source = from + static_cast<int64_t>(row) * depth + k;
      store_shared(tile.element(row, column), load_global_or_zero(inside ? source : from, inside));
    }
  }
}

template <class Tiling>
struct Block {
  using T = typename Tiling::T;
  using Tile = typename Tiling::Tile;
  using Sums = float[Tiling::kM][Tiling::kN][4];

  const PointwiseKernelParams& params;
  uint32_t row_tile;
  int64_t first_row, first_column;
  int rows, columns;  // those that exist

  __device__ __forceinline__ explicit Block(const PointwiseKernelParams& params)
      : params(params), row_tile(blockIdx.x / params.column_tiles) {
    const uint32_t group = row_tile / params.tiles_per_group;
    const int64_t inside_group =
        int64_t{row_tile - group * params.tiles_per_group} * Tiling::kRows;
    first_row = group * params.group_rows + inside_group;
    first_column = int64_t{blockIdx.x - row_tile * params.column_tiles} * Tiling::kColumns;
    int64_t left = params.group_rows - inside_group;
    if (left > params.pixels - first_row) left = params.pixels - first_row;
    rows = left < Tiling::kRows ? static_cast<int>(left) : Tiling::kRows;
    left = params.channels_out - first_column;
    columns = left < Tiling::kColumns ? static_cast<int>(left) : Tiling::kColumns;
  }

  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int group() { return thread() / Tiling::kGroupThreads; }
  __device__ __forceinline__ static int warp() { return thread() % Tiling::kGroupThreads / 32; }
  __device__ __forceinline__ static int warp_row(int of_warp = warp()) {
    return of_warp / Tiling::kWarpsAcross * Tiling::kM * kFragmentRows;
  }
  __device__ __forceinline__ static int warp_column(int of_warp = warp()) {
    return of_warp % Tiling::kWarpsAcross * Tiling::kN * kFragmentColumns;
  }

  __device__ __forceinline__ static T* stage(int index) {
    return reinterpret_cast<T*>(dynamic_shared_memory() + index * Tiling::kStageBytes);
  }

  __device__ __forceinline__ void copy_slice(int slice, int to) const {
    const int depth = static_cast<int>(params.channels_in), first_k = slice * Tiling::kDepth;
    const T* x = static_cast<const T*>(params.x) + first_row * params.channels_in;
    const T* weight = static_cast<const T*>(params.weight) + first_column * params.channels_in;
    const Tile a{stage(to)}, b{stage(to) + Tiling::kRows * Tiling::kDepth};
    copy_rows<Tiling, Tiling::kRows>(a, x, rows, first_k, depth);
    copy_rows<Tiling, Tiling::kColumns>(b, weight, columns, first_k, depth);
  }

  __device__ __forceinline__ void multiply_slices(Sums& sums) const {
    const int slices = params.slices;
#pragma unroll
    for (int ahead = 0; ahead < kStages - 1; ++ahead) {
      if (ahead < slices) copy_slice(ahead, ahead);
      commit_copies();
    }
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // the slice has come, and all have done with the one before it
      const int ahead = slice + kStages - 1;
      if (ahead < slices) copy_slice(ahead, ahead % kStages);
      commit_copies();
      const Tile a{stage(slice % kStages)};
      const Tile b{a.data + Tiling::kRows * Tiling::kDepth};
      const int chunk = group() * kGroupChunks;
      multiply<typename Tiling::Math, T>(sums, a, warp_row(), chunk, b, warp_column(), chunk,
                                         kGroupChunks / 2);
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  // The first group's sums become those of all groups, added in order.
  __device__ __forceinline__ void add_up_groups(Sums& sums) const {
    using Four = Pack<float, 4>;
    auto* parts = reinterpret_cast<Four*>(dynamic_shared_memory());
    const auto part = [&](int of_group, int m, int n) {
      return parts + (((of_group - 1) * Tiling::kM + m) * Tiling::kN + n) * Tiling::kGroupThreads +
             thread() % Tiling::kGroupThreads;
    };
#pragma unroll
    for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
      for (int n = 0; n < Tiling::kN; ++n)
        if (group() > 0) store_shared(part(group(), m, n), pack<float, 4>(sums[m][n]));
    __syncthreads();
    if (group() == 0)
#pragma unroll
      for (int from = 1; from < Tiling::kGroups; ++from)
#pragma unroll
        for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
          for (int n = 0; n < Tiling::kN; ++n) {
            const Four other = load_shared(part(from, m, n));
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] += other.lane[i];
          }
    __syncthreads();  // all have been read: the results come to lie there
  }

  // Sums become results, in the registers that they lie in.
  __device__ __forceinline__ void finish(Sums& sums) const;
  __device__ __forceinline__ void add_residual(Sums& sums) const;

  template <class E>
  __device__ __forceinline__ static ResultTile<E, Tiling::kColumns> results() {
    return {reinterpret_cast<E*>(dynamic_shared_memory())};
  }

  // Its place is found anew, as in finish(): the sums leave few registers to keep it.
  template <class E>
  __device__ __forceinline__ static void put_results(const Sums& sums) {
    const int own = thread_index(), lane = own % 32;
    const int own_warp = own % Tiling::kGroupThreads / 32;
    const int first_row = warp_row(own_warp) + fragment::row(0, lane);
    const int first_column = warp_column(own_warp) + fragment::column(0, lane);
#pragma unroll
    for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
      for (int n = 0; n < Tiling::kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const float pair[2] = {sums[m][n][i], sums[m][n][i + 1]};
          const int row = first_row + m * kFragmentRows + i / 2 * 8;
          const int column = first_column + n * kFragmentColumns;
          store_shared_if(reinterpret_cast<Pack<E, 2>*>(results<E>().element(row, column)),
                          pack<E, 2>(pair), Tiling::kGroups == 1 || group() == 0);
        }
    __syncthreads();
  }

  // Where it has not been added in pairs.
  __device__ __forceinline__ float residual_element(int row, int column) const {
    if (params.residual == nullptr || params.wide_rows) return 0.f;
    const bool inside = column < columns;
    const int64_t offset = (first_row + row) * params.residual_stride + first_column + column;
    const T* from = static_cast<const T*>(params.residual) + (inside ? offset : 0);
    return to_float(load_global_or_zero(from, inside));
  }

  __device__ __forceinline__ void store_rows() const;
  __device__ __forceinline__ void store_elements() const;
  __device__ __forceinline__ void store_means() const;
};

// Of two neighbouring channels; `left` of them and of those behind them exist. wide: both or none.
__device__ __forceinline__ void load_channels(float (&values)[2], const float* from,
                                              int64_t channel, int left, bool wide,
                                              float otherwise) {
  values[0] = values[1] = otherwise;
  if (from == nullptr) return;
  const float* first = left > 0 ? from + channel : from;
  if (wide) {
    unpack(values, load_global_or_zero(reinterpret_cast<const Pack<float, 2>*>(first), left > 0));
  } else {
    values[0] = load_global_or_zero(first, left > 0);
    values[1] = load_global_or_zero(left > 1 ? first + 1 : from, left > 1);
  }
}

template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::finish(Sums& sums) const {
  const int lane = thread_index() % 32;
#pragma unroll
  for (int n = 0; n < Tiling::kN; ++n) {
    const int column = warp_column() + n * kFragmentColumns + fragment::column(0, lane);
    float scale[2], bias[2];
    load_channels(scale, params.epilogue.scale, first_column + column, columns - column,
                  params.wide_rows, 1.f);
    load_channels(bias, params.epilogue.bias, first_column + column, columns - column,
                  params.wide_rows, 0.f);
#pragma unroll
    for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[m][n][i] = fmaf(scale[i % 2], sums[m][n][i], bias[i % 2]);
  }
  Activate(params.epilogue.activation)
      .apply(reinterpret_cast<float(&)[Tiling::kM * Tiling::kN * 4]>(sums));
}

// Two channels a lane.
template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::add_residual(Sums& sums) const {
  using Pair = Pack<T, 2>;
#pragma unroll
  for (int m = 0; m < Tiling::kM; ++m)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int row = warp_row() + m * kFragmentRows + fragment::row(i);
      const int column = warp_column() + fragment::column(0);
      const bool row_inside = row < rows;
      const T* from = static_cast<const T*>(params.residual) +
                      (row_inside ? (first_row + row) * params.residual_stride : 0) +
                      first_column + column;
#pragma unroll
      for (int n = 0; n < Tiling::kN; ++n) {
        const bool inside = row_inside && column + n * kFragmentColumns < columns;
        float values[2];
        unpack(values, load_global_or_zero(
                           reinterpret_cast<const Pair*>(from + n * kFragmentColumns), inside));
        sums[m][n][i] += values[0];
        sums[m][n][i + 1] += values[1];
      }
    }
}

// 16 bytes a thread, of rows that are whole packs.
template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::store_rows() const {
  constexpr int kLanes = kPackLanes<T>, kAcross = Tiling::kColumns / kLanes;
  constexpr int kDown = Tiling::kThreads / kAcross;
  const int column = thread() % kAcross * kLanes;
  const int row = ResultTile<T, Tiling::kColumns>::reading_row(thread() / kAcross);
  T* y = static_cast<T*>(params.y) + (first_row + row) * params.channels_out + first_column +
         column;
#pragma unroll
  for (int down = 0; down < Tiling::kRows; down += kDown) {
    if (Tiling::kRows % kDown != 0 && row + down >= Tiling::kRows) break;
    const T* from = results<T>().element(row + down, column);
    store_global_if(reinterpret_cast<WidePack<T>*>(y + down * params.channels_out),
                    load_shared(reinterpret_cast<const WidePack<T>*>(from)),
                    row + down < rows && column < columns);
  }
}

// Any number of channels: element by element, neighbouring threads neighbouring channels.
template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::store_elements() const {
#pragma unroll 1
  for (int index = thread(); index < rows * Tiling::kColumns; index += Tiling::kThreads) {
    const int row = index / Tiling::kColumns, column = index % Tiling::kColumns;
    const bool inside = column < columns;
    const float value = load_shared(results<float>().element(row, column)) +
                        residual_element(row, column);
    const int64_t offset = (first_row + row) * params.channels_out + first_column + column;
    store_global_if(static_cast<T*>(params.y) + (inside ? offset : 0), from_float<T>(value),
                    inside);
  }
}

// A thread a column and image: the sum over the image's rows of this tile, in order.
template <class Tiling>
__device__ __forceinline__ void Block<Tiling>::store_means() const {
  constexpr int kAtOnce = Tiling::kColumns < Tiling::kThreads ? Tiling::kColumns : Tiling::kThreads;
  constexpr int kImagesAtOnce = Tiling::kThreads / kAtOnce;
  const int pixels =
      params.pixels_per_image < rows ? static_cast<int>(params.pixels_per_image) : rows;
  const bool whole = params.tiles_per_group == 1;
  for (int column = thread() % kAtOnce; column < Tiling::kColumns; column += kAtOnce) {
    for (int image = thread() / kAtOnce; image * pixels < rows; image += kImagesAtOnce) {
      float sum = 0.f;
#pragma unroll 4
      for (int row = image * pixels; row < (image + 1) * pixels && row < rows; ++row)
        sum += load_shared(results<float>().element(row, column)) + residual_element(row, column);
      const int64_t line = whole ? first_row / params.pixels_per_image + image : row_tile;
      const int64_t offset = line * params.channels_out + first_column + column;
      const bool inside = column < columns;
      if (whole)
        store_global_if(static_cast<T*>(params.y) + (inside ? offset : 0),
                        from_float<T>(sum / static_cast<float>(params.pixels_per_image)), inside);
      else
        store_global_if(params.tile_sums + (inside ? offset : 0), sum, inside);
    }
  }
}

template <class Tiling>
__device__ __forceinline__ void run_block(const PointwiseKernelParams& params) {
  using T = typename Tiling::T;
  const Block<Tiling> block(params);
  float sums[Tiling::kM][Tiling::kN][4] = {};
  block.multiply_slices(sums);
  let_next_launch_begin();
  if constexpr (Tiling::kGroups > 1) block.add_up_groups(sums);
  if (Tiling::kGroups == 1 || block.group() == 0) {
    block.finish(sums);
    if (params.residual != nullptr && params.wide_rows) block.add_residual(sums);
  }
  if (params.wide_rows && params.pixels_per_image == 0) {
    block.template put_results<T>(sums);
    block.store_rows();
    return;
  }
  block.template put_results<float>(sums);
  if (params.pixels_per_image > 0)
    block.store_means();
  else
    block.store_elements();
}

}  // namespace pointwise
}  // namespace fastdw::cuda
