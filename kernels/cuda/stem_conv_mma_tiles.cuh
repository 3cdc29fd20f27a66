// What stem_conv's tensor-core kernel has in shared memory: the rows of x under a thread block's
// output pixels as they lie in memory, zeros around; the weights in the order of the fragments; and
// where the terms of a window lie.
#pragma once

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/dtype.cuh"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/mma.cuh"

namespace fastdw::cuda::stem {

constexpr int kMmaWarps = 4;
constexpr int kSegment = kFragmentRows;  // output pixels of one product
constexpr int kTiles = 4;                // of 8 output channels, a warp's
constexpr int kGroup = kTiles * kFragmentColumns;
template <class T>
constexpr int kTermDepth = kStepDepth<T>;  // terms of one mma: 16 of 2 bytes, 8 of 4
constexpr int kLaneChannels = 2 * kTiles;  // output channels of a lane
constexpr int kMostSteps = 4;              // for which a warp keeps its weights in registers

struct MmaParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  int64_t x_image, x_channel, x_row, x_column;  // elements from one to the next
  int64_t channels_in, channels_out;
  int32_t height, height_out, width_out;
  int32_t stride_h, stride_w, pad_left, pad_top;
  int32_t terms, steps;  // of a window
  // Of a thread block; its warps share groups of kGroup output channels, of which there are 2^n.
  int32_t groups, groups_log2, warps_a_group, rows, segments;
  uint32_t channel_blocks;
  uint32_t planes;
  Divisor rows_in, row_chunks;   // staged
  Divisor taps, kernel_w;
  int32_t pitch, channel_pitch;  // in shared memory, elements
  int32_t weights_at, table_at;  // there too
  int32_t chunk;                 // elements of x copied at once: 16 or 8 bytes, or one
};

// A lane's output channel i, counted from its first: lanes store 16 bytes of a pixel, next to one
// another, once or (of 4 bytes) twice. In the fragments it is column 2 (lane % 4) + i % 2 of tile
// i / 2.
template <class T>
__device__ __forceinline__ constexpr int lane_channel(int i) {
  return i / kPackLanes<T> * 4 * kPackLanes<T> + i % kPackLanes<T>;
}

// The row of B that holds an output channel of a group.
template <class T>
__device__ __forceinline__ int weight_row(int channel) {
  constexpr int kLanes = kPackLanes<T>;
  const int i = channel / (4 * kLanes) * kLanes + channel % kLanes;
  return i / 2 * kFragmentColumns + channel / kLanes % 4 * 2 + i % 2;
}

struct MmaTile {
  int64_t image, first_channel;
  int row_out, column_out, row_in, first_value;  // value: of a row of x

  __device__ __forceinline__ explicit MmaTile(const MmaParams& params) {
    uint32_t column_tile = blockIdx.x, channel_block = 0;
    if (params.channel_blocks > 1) {
      column_tile = blockIdx.x / params.channel_blocks;
      channel_block = blockIdx.x - column_tile * params.channel_blocks;
    }
    first_channel = static_cast<int>(channel_block) * params.groups * kGroup;
    column_out = static_cast<int>(column_tile) * params.segments * kSegment;
    row_out = static_cast<int>(blockIdx.y) * params.rows;
    image = blockIdx.z;
    row_in = row_out * params.stride_h - params.pad_top;
    first_value =
        (column_out * params.stride_w - params.pad_left) * static_cast<int>(params.x_column);
  }
};

__device__ __forceinline__ int warp_index() {
  return static_cast<int>(static_cast<unsigned>(threadIdx.x) / 32);
}

// A chunk of x and its place in shared memory, elements from the first.
struct ChunkPlace {
  int from, to;
  bool inside;

  __device__ __forceinline__ ChunkPlace(const MmaParams& params, const MmaTile& tile, int begin,
                                        int size, uint32_t index) {
    const uint32_t line = params.row_chunks.quotient(index);
    const int plane = static_cast<int>(params.rows_in.quotient(line));
    const int row = static_cast<int>(line) - plane * static_cast<int>(params.rows_in.by);
    const int value = static_cast<int>(index - line * params.row_chunks.by) * size;
    const auto x_row = static_cast<uint32_t>(params.x_row);
    inside = static_cast<uint32_t>(tile.row_in + row) < static_cast<uint32_t>(params.height) &&
             static_cast<uint32_t>(begin + value) < x_row;
    from = plane * static_cast<int>(params.x_channel) + row * static_cast<int>(x_row) + value;
    to = plane * params.channel_pitch + row * params.pitch + value;
  }
};

// x as [plane][row][pitch], from the chunk that the window's first value lies in.
template <class T, int kChunk>
__device__ __forceinline__ void stage_rows(const MmaParams& params, const MmaTile& tile, T* to) {
  using Chunk = Pack<T, kChunk>;
  constexpr uint32_t kThreads = kMmaWarps * 32;
  const int begin = tile.first_value & -kChunk;
  const T* x = static_cast<const T*>(params.x) + tile.image * params.x_image +
               (tile.row_in * params.x_row + begin);
  const uint32_t chunks = params.planes * params.rows_in.by * params.row_chunks.by;
  if constexpr (sizeof(Chunk) == 16) {
#pragma unroll 2
    for (uint32_t index = threadIdx.x; index < chunks; index += kThreads) {
      const ChunkPlace place(params, tile, begin, kChunk, index);
      copy_async(to + place.to, x + place.from, place.inside);
    }
  } else {
    constexpr int kAtOnce = 4;  // loads under way
#pragma unroll 1
    for (uint32_t first = threadIdx.x; first < chunks; first += kAtOnce * kThreads) {
      Chunk values[kAtOnce];
      T* places[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const ChunkPlace place(params, tile, begin, kChunk, first + i * kThreads);
        places[i] = to + place.to;
        values[i] = load_global_or_zero(reinterpret_cast<const Chunk*>(x + place.from),
                                        place.inside && first + i * kThreads < chunks);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        store_shared_if(reinterpret_cast<Chunk*>(places[i]), values[i],
                        first + i * kThreads < chunks);
    }
  }
}

template <class T>
__device__ __forceinline__ void stage_rows(const MmaParams& params, const MmaTile& tile, T* to) {
  constexpr int kWide = kPackLanes<T>;
  if (params.chunk == kWide) {
    stage_rows<T, kWide>(params, tile, to);
  } else if (params.chunk == kWide / 2) {
    stage_rows<T, kWide / 2>(params, tile, to);
  } else {
    stage_rows<T, 1>(params, tile, to);
  }
}

template <class T>
__device__ __forceinline__ T as_factor(T value) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(round_to_tf32(__float_as_uint(value)));
  return value;
}

// The weights as [step][output channel, in the order of the fragments' columns][term], zeros where
// there are none. A thread keeps two terms of a step; 16 or 32 bytes of a channel are read at once.
template <class T, int kSteps>
__device__ __forceinline__ void stage_weights(const MmaParams& params, const MmaTile& tile,
                                              T* shared) {
  using Pair = Pack<T, 2>;
  constexpr int kDepth = kTermDepth<T>, kPairs = kDepth / 2, kAtOnce = kMmaWarps * 32 / kPairs;
  constexpr int kTurns = kGroup / kAtOnce, kSome = kSteps > 0 ? kSteps : 4;  // loads under way
  static_assert(kGroup % kAtOnce == 0, "a thread keeps its terms");
  const SharedTile<T, kDepth> to{shared};
  const int thread = static_cast<int>(threadIdx.x), first = thread / kPairs;
  const int rows = params.groups * kGroup;
  int left = static_cast<int>(params.channels_out - tile.first_channel) - first;
  const T* from = static_cast<const T*>(params.weight) +
                  (tile.first_channel + first) * params.terms + thread % kPairs * 2;
#pragma unroll 1
  for (int group = 0; group < params.groups; ++group, left -= kGroup) {
#pragma unroll 1
    for (int some = 0; some < params.steps; some += kSome) {
      Pair pairs[kSome][kTurns];
#pragma unroll
      for (int step = 0; step < kSome; ++step)
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          const int k = (some + step) * kDepth, terms = params.terms - k - thread % kPairs * 2;
          const T* pair = from + (i * kAtOnce * params.terms + k);
          const bool inside = i * kAtOnce < left;
          pairs[step][i].lane[0] = load_global_or_zero(pair, inside && terms > 0);
          pairs[step][i].lane[1] = load_global_or_zero(pair + 1, inside && terms > 1);
        }
#pragma unroll
      for (int step = 0; step < kSome; ++step)
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          const int row = group * kGroup + weight_row<T>(first + i * kAtOnce);
          T* place = to.element((some + step) * rows + row, thread % kPairs * 2);
          const Pair pair{{as_factor(pairs[step][i].lane[0]), as_factor(pairs[step][i].lane[1])}};
          store_shared_if(reinterpret_cast<Pair*>(place), pair, some + step < params.steps);
        }
    }
    from += kGroup * params.terms;
  }
}

// Where the terms of a lane's words lie in a window, bytes: [step][lane % 4][word][element], and
// beyond the last term that one again.
template <class T>
constexpr int kStepPlaces = sizeof(T) == 2 ? 4 : 2;  // of a lane
template <class T>
using StepPlaces = Pack<uint16_t, kStepPlaces<T>>;

template <class T>
__device__ __forceinline__ void stage_places(const MmaParams& params, uint16_t* table) {
  constexpr int kDepth = kTermDepth<T>, kElements = kStepPlaces<T> / 2;
#pragma unroll 1
  for (int k = static_cast<int>(threadIdx.x); k < params.steps * kDepth; k += kMmaWarps * 32) {
    const auto term = static_cast<uint32_t>(k < params.terms ? k : params.terms - 1);
    const uint32_t channel = params.taps.quotient(term), tap = term - channel * params.taps.by;
    const uint32_t row = params.kernel_w.quotient(tap), column = tap - row * params.kernel_w.by;
    const int place = static_cast<int>(channel) * params.channel_pitch +
                      static_cast<int>(row) * params.pitch +
                      static_cast<int>(column) * static_cast<int>(params.x_column);
    const int inside = k % kDepth, word = inside / (kDepth / 2), pair = inside % (kDepth / 2);
    store_shared(table + ((k / kDepth * 4 + pair / kElements) * 2 + word) * kElements +
                     pair % kElements,
                 static_cast<uint16_t>(place * static_cast<int>(sizeof(T))));
  }
}

}  // namespace fastdw::cuda::stem
