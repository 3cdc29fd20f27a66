// The depthwise convolution of 3x3 windows, NHWC. A thread block copies the pixels of x under a
// tile of y to shared memory, all at once and zeros where the image has ended: nothing waits for a
// single load, and the inner loop has no conditions. Then a thread walks down a strip of rows: one
// or two columns of y, 4 channels, the rows above living on as partial sums.
#pragma once

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/dtype.cuh"
#include "kernels/cuda/epilogue.cuh"

namespace fastdw::cuda::depthwise {

constexpr int kTileKernel = 3, kTileTaps = kTileKernel * kTileKernel;
constexpr int kTileLanes = 4;  // channels of a thread: 36 taps in registers
constexpr int kTileThreads = 256;
constexpr int kChunkBytes = 16;  // a copy

template <int kStrideSize, int kColumnCount>
struct TileGeometry {
  static constexpr int kStride = kStrideSize, kColumns = kColumnCount;
  static constexpr int kStep = kStride * kColumns;  // columns of x from a thread to the next
  static constexpr int kWindow = (kColumns - 1) * kStride + kTileKernel;  // under its columns of y
};

struct TileParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  int64_t x_image, y_image;  // elements; within an image 32 bits are enough
  int32_t height, width, height_out, width_out, channels, pad_top, pad_left;
  // Of a thread block: channels, threads side by side and strips of rows. The grid is [column
  // tiles][channel groups], rows of tiles, images.
  int32_t channels_of_block, strips, strip_rows, rows_in;
  Divisor groups, chunks, columns_in, packs, threads_across;
  int32_t rows_at_once;  // that the threads of a block copy
  int32_t pixel_bytes, row_bytes, part_bytes;  // in shared memory
};

// What a thread block computes.
struct TilePlace {
  int channel, row, column;  // of y, its first
  int64_t image;

  __device__ __forceinline__ TilePlace(const TileParams& params, int columns_of_thread) {
    const uint32_t column_tile = params.groups.quotient(blockIdx.x);
    const uint32_t group = blockIdx.x - column_tile * params.groups.by;
    channel = static_cast<int>(group) * params.channels_of_block;
    column = static_cast<int>(column_tile * params.threads_across.by) * columns_of_thread;
    row = static_cast<int>(blockIdx.y) * params.strips * params.strip_rows;
    image = blockIdx.z;
  }
};

// Where a column lies in a staged row: all first columns of threads, then all second ones, so that
// what neighbouring threads read lies together.
template <class G>
__device__ __forceinline__ int staged_column(const TileParams& params, uint32_t column) {
  const uint32_t part = column % G::kStep, place = column / G::kStep;
  return static_cast<int>(part) * params.part_bytes + static_cast<int>(place) * params.pixel_bytes;
}

template <class T, class G>
__device__ __forceinline__ void stage_tile(const TileParams& params, const TilePlace& place,
                                           unsigned char* shared) {
  const uint32_t thread = threadIdx.x;
  const uint32_t pixel = params.chunks.quotient(thread);
  const int chunk = static_cast<int>(thread - pixel * params.chunks.by);
  const uint32_t row_of_copy = params.columns_in.quotient(pixel);
  const uint32_t column_in = pixel - row_of_copy * params.columns_in.by;
  const int first = static_cast<int>(row_of_copy);
  if (first >= params.rows_at_once) return;
  const int channel = place.channel + chunk * (kChunkBytes / static_cast<int>(sizeof(T)));
  const int column = place.column * G::kStride - params.pad_left + static_cast<int>(column_in);
  const bool inside = static_cast<uint32_t>(column) < static_cast<uint32_t>(params.width) &&
                      channel < params.channels;
  int row = place.row * G::kStride - params.pad_top + first;
  const int row_step = params.rows_at_once * params.width * params.channels;
  const T* from = static_cast<const T*>(params.x) + place.image * params.x_image +
                  ((row * params.width + column) * params.channels + channel);
  unsigned char* to = shared + first * params.row_bytes +
                      staged_column<G>(params, column_in) + chunk * kChunkBytes;
  const int to_step = params.rows_at_once * params.row_bytes;
#pragma unroll 2
  for (int i = first; i < params.rows_in; i += params.rows_at_once) {
    copy_async(to, from,
               inside && static_cast<uint32_t>(row) < static_cast<uint32_t>(params.height));
    from += row_step;
    to += to_step;
    row += params.rows_at_once;
  }
}

template <class T>
struct TileTaps {
  using Packed = Pack<T, kTileLanes>;
  Packed packs[kTileTaps];  // 4 channels by 9 taps, as they lie in memory

  __device__ __forceinline__ TileTaps(const T* weight, bool inside) {
#pragma unroll
    for (int i = 0; i < kTileTaps; ++i)
      packs[i] = load_global_or_zero(reinterpret_cast<const Packed*>(weight) + i, inside);
  }

  __device__ __forceinline__ void get(float (&taps)[kTileTaps][kTileLanes]) const {
#pragma unroll
    for (int i = 0; i < kTileTaps; ++i) {
      float values[kTileLanes];
      unpack(values, packs[i]);
#pragma unroll
      for (int c = 0; c < kTileLanes; ++c) {
        const int at = i * kTileLanes + c;
        taps[at % kTileTaps][at / kTileTaps] = values[c];
      }
    }
  }
};

// A strip of y, and what it is computed from.
template <class T, class G>
struct TileStrip {
  using Packed = Pack<T, kTileLanes>;
  using Sums = float[G::kColumns][kTileLanes];
  using Window = float[G::kWindow][kTileLanes];

  float taps[kTileTaps][kTileLanes];
  const unsigned char* columns[G::kWindow];  // in the next row of x
  int row_bytes;

  __device__ __forceinline__ void load(Window& window) {
#pragma unroll
    for (int j = 0; j < G::kWindow; ++j) {
      unpack(window[j], load_shared(reinterpret_cast<const Packed*>(columns[j])));
      columns[j] += row_bytes;
    }
  }

  // result = from + a row of x under tap row i
  __device__ __forceinline__ void add(Sums& result, const Sums& from, const Window& window,
                                      int i) const {
#pragma unroll
    for (int q = 0; q < G::kColumns; ++q)
#pragma unroll
      for (int c = 0; c < kTileLanes; ++c) {
        float sum = from[q][c];
#pragma unroll
        for (int j = 0; j < kTileKernel; ++j)
          sum = fmaf(window[q * G::kStride + j][c], taps[i * kTileKernel + j][c], sum);
        result[q][c] = sum;
      }
  }

  template <class Store>
  __device__ __forceinline__ void walk(int rows, const Store& store) {
    const Sums zeros = {};
    Sums newer, older;  // of the row of y that begins with the latest row of x, of the one before
    Window window;
    load(window);
    add(newer, zeros, window, 0);
    if constexpr (G::kStride == 1) {
      load(window);
      add(older, newer, window, 1);
      add(newer, zeros, window, 0);
    }
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      Sums sums;
      if constexpr (G::kStride == 2) {
        load(window);
        add(older, newer, window, 1);
      }
      load(window);
      add(sums, older, window, 2);
      if constexpr (G::kStride == 1) add(older, newer, window, 1);
      add(newer, zeros, window, 0);
      store(sums);
    }
  }
};

// What a thread computes.
struct TileThread {
  int pack, across, strip;

  __device__ __forceinline__ explicit TileThread(const TileParams& params) {
    const uint32_t pixel = params.packs.quotient(threadIdx.x);
    const uint32_t row = params.threads_across.quotient(pixel);
    pack = static_cast<int>(threadIdx.x - pixel * params.packs.by);
    across = static_cast<int>(pixel - row * params.threads_across.by);
    strip = static_cast<int>(row);
  }
};

// Scale or bias of a thread's channels: loaded early, looked at late.
struct TileValues {
  Pack<float, kTileLanes> loaded;
  bool is_given;

  __device__ __forceinline__ TileValues(const float* from, int channel, bool inside)
      : loaded(load_global_or_zero(reinterpret_cast<const Pack<float, kTileLanes>*>(from + channel),
                                   inside && from != nullptr)),
        is_given(from != nullptr) {}

  __device__ __forceinline__ void get(float (&values)[kTileLanes], float without) const {
#pragma unroll
    for (int c = 0; c < kTileLanes; ++c) values[c] = is_given ? loaded.lane[c] : without;
  }
};

template <class T, class G>
__device__ __forceinline__ void tile(const TileParams& params) {
  unsigned char* shared = dynamic_shared_memory();
  const TilePlace place(params, G::kColumns);
  const TileThread thread(params);
  const int channel = place.channel + thread.pack * kTileLanes;
  const int column = place.column + thread.across * G::kColumns;
  const int first_row = place.row + thread.strip * params.strip_rows;
  const int rows_left = params.height_out - first_row;
  const int rows = rows_left < params.strip_rows ? rows_left : params.strip_rows;
  const bool active = thread.strip < params.strips && channel < params.channels &&
                      column < params.width_out && rows > 0;
  wait_for_previous_launch();  // until here only indices
  const TileTaps<T> taps(static_cast<const T*>(params.weight) + channel * kTileTaps, active);
  const TileValues scales(params.epilogue.scale, channel, active);
  const TileValues biases(params.epilogue.bias, channel, active);
  stage_tile<T, G>(params, place, shared);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  let_next_launch_begin();
  if (!active) return;
  float scale[kTileLanes], bias[kTileLanes];
  scales.get(scale, 1.f);
  biases.get(bias, 0.f);
  TileStrip<T, G> strip;
  taps.get(strip.taps);
  strip.row_bytes = params.row_bytes;
#pragma unroll
  for (int j = 0; j < G::kWindow; ++j)
    strip.columns[j] = shared + thread.strip * params.strip_rows * G::kStride * params.row_bytes +
                       thread.across * params.pixel_bytes + staged_column<G>(params, j) +
                       thread.pack * static_cast<int>(sizeof(Pack<T, kTileLanes>));
  T* y = static_cast<T*>(params.y) + place.image * params.y_image +
         ((first_row * params.width_out + column) * params.channels + channel);
  const int y_step = params.width_out * params.channels;
  const int columns_right = params.width_out - 1 - column;
  const auto walk = [&](const Activate& activate) {
    strip.walk(rows, [&](const float(&sums)[G::kColumns][kTileLanes]) {
#pragma unroll
      for (int q = 0; q < G::kColumns; ++q) {
        float values[kTileLanes];
#pragma unroll
        for (int c = 0; c < kTileLanes; ++c) values[c] = fmaf(sums[q][c], scale[c], bias[c]);
        activate.apply(values);
        store_global_if(reinterpret_cast<Pack<T, kTileLanes>*>(y + q * params.channels),
                        pack<T>(values), q <= columns_right);
      }
      y += y_step;
    });
  };
  // A loop for either kind: the branch is not taken again in every row.
  const Activation kind = params.epilogue.activation;
  if (kind == Activation::hardswish || kind == Activation::silu)
    walk(Activate(kind == Activation::silu ? Activation::silu : Activation::hardswish));
  else
    walk(Activate(kind == Activation::relu6  ? Activation::relu6
                  : kind == Activation::relu ? Activation::relu
                                             : Activation::none));
}

}  // namespace fastdw::cuda::depthwise
