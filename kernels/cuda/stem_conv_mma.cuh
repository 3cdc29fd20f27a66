// stem_conv by tensor cores, for elements of 2 bytes and windows of at most 16 kSteps terms: a
// matrix product whose row is the window of an output pixel. A thread block copies the rows of x
// under `rows` by 16 `segments` output pixels as they lie in memory, zeros around, and the weights.
// A warp keeps those of 32 output channels in registers, then takes 16 pixels at a time. Terms k
// are in the order of the weight; where one lies in a window is the same for every pixel.
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
constexpr int kTermDepth = 16;  // terms of one mma
// A lane's output channels lie together: its columns 2t, 2t + 1 of tile j are channels 8t + 2j and
// the next, so that it stores 16 bytes.
constexpr int kLaneChannels = 2 * kTiles;

constexpr int kMostTerms = 64;

struct MmaParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  int64_t x_image, x_channel, x_row, x_column;  // elements from one to the next
  int64_t channels_in, channels_out;
  int32_t height, height_out, width_out;
  int32_t stride_h, stride_w, pad_left, pad_top;
  int32_t terms;  // of a window
  // Of a thread block; its warps share groups of kGroup output channels, of which there are 2^n.
  int32_t groups, groups_log2, warps_a_group, rows, segments;
  uint32_t channel_blocks;
  uint32_t planes;
  Divisor rows_in, row_chunks;   // staged
  int32_t pitch, channel_pitch;  // in shared memory, elements
  int32_t weights_at;            // there too
  int32_t chunk;                 // elements copied at once: 8, 4 or 1
  uint16_t places[kMostTerms];   // of a window's terms in shared memory, bytes
};

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
  if (params.chunk == 8) {
    stage_rows<T, 8>(params, tile, to);
  } else if (params.chunk == 4) {
    stage_rows<T, 4>(params, tile, to);
  } else {
    stage_rows<T, 1>(params, tile, to);
  }
}

// The output channels in the order of the fragments' columns, terms that there are not as zeros.
template <class T, int kSteps>
__device__ __forceinline__ void stage_weights(const MmaParams& params, const MmaTile& tile,
                                              const SharedTile<T, kSteps * kTermDepth>& shared) {
  using Pair = Pack<T, 2>;
  constexpr uint32_t kPairs = kSteps * kTermDepth / 2;
  constexpr uint32_t kAtOnce = kMmaWarps * 32 / kPairs;  // channels
  static_assert(kGroup % kAtOnce == 0, "a thread keeps its terms");
  const uint32_t thread = threadIdx.x % (kMmaWarps * 32);
  const uint32_t first = thread / kPairs;
  const int k = static_cast<int>(thread % kPairs) * 2, step = kAtOnce * params.terms;
  const int64_t first_channel = tile.first_channel + first;
  const T* from = static_cast<const T*>(params.weight) + first_channel * params.terms + k;
  int left = static_cast<int>(params.channels_out - first_channel);
#pragma unroll 1
  for (int group = 0; group < params.groups; ++group, left -= kGroup) {
    const int low = k < params.terms ? left : 0, high = k + 1 < params.terms ? left : 0;
    Pair pairs[kGroup / kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kGroup / kAtOnce; ++i, from += step) {
      pairs[i].lane[0] = load_global_or_zero(from, static_cast<int>(i * kAtOnce) < low);
      pairs[i].lane[1] = load_global_or_zero(from + 1, static_cast<int>(i * kAtOnce) < high);
    }
#pragma unroll
    for (uint32_t i = 0; i < kGroup / kAtOnce; ++i) {
      const uint32_t channel = first + i * kAtOnce;
      const uint32_t row = channel % kLaneChannels / 2 * kFragmentColumns +
                           channel / kLaneChannels * 2 + channel % 2;
      store_shared(
          reinterpret_cast<Pair*>(shared.element(group * kGroup + static_cast<int>(row), k)),
          pairs[i]);
    }
  }
}

// Two elements as a word of a fragment.
__device__ __forceinline__ uint32_t load_pair(const unsigned char* low, const unsigned char* high) {
  const uint32_t low_bits = load_shared(reinterpret_cast<const uint16_t*>(low));
  const uint32_t high_bits = load_shared(reinterpret_cast<const uint16_t*>(high));
  return low_bits | high_bits << 16;
}

// The terms of this lane's fragments: words 2 step and 2 step + 1 of a row hold two each. Masks
// clear terms that there are not: what is read for them may be infinite, and a weight of zero would
// make NaN of it. kSteps is the least power of two: the first half of the words is full.
template <int kSteps>
struct Terms {
  static constexpr int kWords = 2 * kSteps, kFull = kSteps > 1 ? kSteps : 0;
  int place[kWords][2];
  uint32_t mask[kWords - kFull];

  __device__ __forceinline__ explicit Terms(const MmaParams& params) {
    const int first = fragment::column(0);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int k = first + word * (kTermDepth / 2), left = params.terms - k;
#pragma unroll
      for (int i = 0; i < 2; ++i) place[word][i] = params.places[k + i];
      if (word >= kFull)  // kept, not made anew for every product
        mask[word - kFull] = static_cast<uint32_t>(recomputed(left > 1    ? -1
                                                              : left == 1 ? 0xffff
                                                                          : 0));
    }
  }

  __device__ __forceinline__ uint32_t word(const unsigned char* window, int index) const {
    const uint32_t pair = load_pair(window + place[index][0], window + place[index][1]);
    return index < kFull ? pair : pair & mask[index < kFull ? 0 : index - kFull];
  }
};

template <class T, int kSteps>
__device__ __forceinline__ void load_weights(uint32_t (&b)[kSteps][kTiles][2],
                                             const SharedTile<T, kSteps * kTermDepth>& weights,
                                             int first) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      uint32_t parts[4];
      load_matrices(parts, fragment::b_rows(weights, first + j * kFragmentColumns, 2 * step));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[step][j + i / 2][i % 2] = parts[i];
    }
}

// window: of this lane's first pixel; that of the second is 8 pixels, `further` bytes, away.
template <class T, int kSteps>
__device__ __forceinline__ void multiply_windows(float (&sums)[kTiles][4],
                                                 const unsigned char* window, int further,
                                                 const Terms<kSteps>& terms,
                                                 const uint32_t (&b)[kSteps][kTiles][2]) {
  uint32_t a[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int part = 0; part < 4; ++part)
      a[step][part] = terms.word(window + part % 2 * further, 2 * step + part / 2);
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma_16x8x16<T>(sums[j], a[step], b[step][j][0], b[step][j][1]);
}

// Of this lane's channels, zeros beyond the last; null: zeros.
template <bool kWide>
struct OfChannels {
  static constexpr int kLoaded = kWide ? 4 : 1;
  Pack<float, kLoaded> packs[kLaneChannels / kLoaded];

  __device__ __forceinline__ OfChannels(const float* from, int64_t first, int channels) {
#pragma unroll
    for (int i = 0; i < kLaneChannels; i += kLoaded)
      packs[i / kLoaded] =
          load_global_or_zero(reinterpret_cast<const Pack<float, kLoaded>*>(from + first + i),
                              from != nullptr && i < channels);
  }

  __device__ __forceinline__ float operator[](int i) const {
    return packs[i / kLoaded].lane[i % kLoaded];
  }
};

// This lane's channels of two pixels. kWide: 16 bytes, all or none of them inside.
template <class T, bool kWide>
__device__ __forceinline__ void store_pixels(T* y, int further, const bool (&inside)[2],
                                             const float (&values)[2 * kLaneChannels],
                                             int channels) {
  constexpr int kStored = kWide ? kLaneChannels : 1;
#pragma unroll
  for (int first = 0; first < 2 * kLaneChannels; first += kStored) {
    const int pixel = first / kLaneChannels, channel = first % kLaneChannels;
    float stored[kStored];
#pragma unroll
    for (int i = 0; i < kStored; ++i) stored[i] = values[first + i];
    store_global_if(reinterpret_cast<Pack<T, kStored>*>(y + pixel * further + channel),
                    pack<T>(stored), inside[pixel] && channel < channels);
  }
}

template <class T, int kSteps, bool kWide>
__device__ __forceinline__ void run_mma_block(const MmaParams& params) {
  const MmaTile tile(params);
  T* x = reinterpret_cast<T*>(dynamic_shared_memory());
  const SharedTile<T, kSteps * kTermDepth> weights{x + params.weights_at};
  stage_rows(params, tile, x);
  commit_copies();
  const int lane = fragment::lane(), pixel_out = lane / 4;
  const int group = warp_index() & (params.groups - 1);
  const int64_t first_channel = tile.first_channel + group * kGroup + lane % 4 * kLaneChannels;
  const int64_t left = params.channels_out - first_channel;
  const int channels = left < kLaneChannels ? static_cast<int>(left) : kLaneChannels;
  const OfChannels<kWide> scales(params.epilogue.scale, first_channel, channels);
  const OfChannels<kWide> bias(params.epilogue.bias, first_channel, channels);
  stage_weights<T, kSteps>(params, tile, weights);
  const Terms<kSteps> terms(params);
  const Activate activate(params.epilogue.activation);
  const int pixel = params.stride_w * static_cast<int>(params.x_column);
  const int outputs = static_cast<int>(params.channels_out);
  const int rows_left = params.height_out - tile.row_out;
  const int rows = rows_left < params.rows ? rows_left : params.rows;
  const T* windows = x + (tile.first_value & (params.chunk - 1)) + pixel_out * pixel;
  const int64_t first_row = tile.image * params.height_out + tile.row_out;
  T* y = static_cast<T*>(params.y) + first_channel +
         (first_row * params.width_out + tile.column_out + pixel_out) * outputs;
  wait_for_copies<0>();
  __syncthreads();
  float scale[kLaneChannels];
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i)
    scale[i] = params.epilogue.scale == nullptr ? 1.f : scales[i];
  uint32_t b[kSteps][kTiles][2];
  load_weights<T, kSteps>(b, weights, group * kGroup);

  // The warps of a group take every warps_a_group-th segment.
  int row = 0, segment = warp_index() >> params.groups_log2;
#pragma unroll 1
  while (true) {
    for (; segment >= params.segments; segment -= params.segments) ++row;
    if (row >= rows) return;
    const int first = segment * kSegment;
    const T* window = windows + row * params.stride_h * params.pitch + first * pixel;
    float sums[kTiles][4] = {};
    multiply_windows<T>(sums, reinterpret_cast<const unsigned char*>(window),
                        8 * pixel * static_cast<int>(sizeof(T)), terms, b);
    float values[2 * kLaneChannels];
#pragma unroll
    for (int i = 0; i < 2 * kLaneChannels; ++i) {
      const int channel = i % kLaneChannels;
      values[i] = fmaf(sums[channel / 2][i / kLaneChannels * 2 + channel % 2], scale[channel],
                       bias[channel]);
    }
    activate.apply(values);
    const int columns = params.width_out - tile.column_out - first - pixel_out;
    store_pixels<T, kWide>(y + (row * params.width_out + first) * outputs, 8 * outputs,
                           {columns > 0, columns > 8}, values, channels);
    segment += params.warps_a_group;
  }
}

}  // namespace fastdw::cuda::stem
