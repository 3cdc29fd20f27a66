// stem_conv by tensor cores, for elements of 2 bytes and for fp32 in tf32: a matrix product whose
// row is the window of an output pixel. A thread block makes `rows` by 16 `segments` output pixels
// from shared memory (stem_conv_mma_tiles.cuh). A warp takes 32 output channels of 16 pixels at a
// time, their weights kept in registers where there are at most kMostSteps steps of terms. Terms k
// are in the order of the weight; where one lies in a window is the same for every pixel.
#pragma once

#include "kernels/cuda/stem_conv_mma_tiles.cuh"

namespace fastdw::cuda::stem {

// A word of a fragment, two elements or one.
template <class T>
__device__ __forceinline__ uint32_t load_word(const unsigned char* window,
                                              const int (&places)[kStepPlaces<T> / 2]) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t low = load_shared(reinterpret_cast<const uint16_t*>(window + places[0]));
    const uint32_t high = load_shared(reinterpret_cast<const uint16_t*>(window + places[1]));
    return low | high << 16;
  } else {
    return round_to_tf32(load_shared(reinterpret_cast<const uint32_t*>(window + places[0])));
  }
}

// The terms of this lane in a step: of a row's words 0 and 1. The mask clears terms that there are
// not: what is read for them may be infinite, and a weight of zero would make NaN of it.
template <class T>
struct StepTerms {
  static constexpr int kElements = kStepPlaces<T> / 2;
  int place[2][kElements];

  __device__ __forceinline__ StepTerms(const uint16_t* table, int step) {
    const auto places = load_shared(reinterpret_cast<const StepPlaces<T>*>(table) + step * 4 +
                                    fragment::lane() % 4);
#pragma unroll
    for (int i = 0; i < 2 * kElements; ++i) place[i / kElements][i % kElements] = places.lane[i];
  }

  __device__ __forceinline__ uint32_t word(const unsigned char* window, int index) const {
    return load_word<T>(window, place[index]);
  }

  __device__ __forceinline__ static uint32_t mask(const MmaParams& params, int step, int index) {
    const int first = fragment::lane() % 4 * kElements + index * (kTermDepth<T> / 2);
    const int left = params.terms - step * kTermDepth<T> - first;
    const uint32_t one = sizeof(T) == 2 ? 0xffffu : ~0u;
    return left >= kElements ? ~0u : left == 1 ? one : 0;
  }
};

// B's parts of a step; row: that of this lane for ldmatrix, of the group's first channels.
template <class T>
__device__ __forceinline__ void load_weights(uint32_t (&b)[kTiles][2], const T* row) {
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    uint32_t parts[4];
    load_matrices(parts, row + j * kFragmentColumns * kTermDepth<T>);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[j + i / 2][i % 2] = parts[i];
  }
}

// What a warp multiplies windows by: kSteps steps' weights in registers. kSteps is the least power
// of two: the first half of the words is full.
template <class T, int kSteps>
struct Factors {
  static constexpr int kMasked = kSteps > 1 ? kSteps / 2 : 0;  // the first step that is
  uint32_t b[kSteps][kTiles][2];
  int place[kSteps][2][StepTerms<T>::kElements];
  uint32_t masks[kSteps - kMasked][2];

  __device__ __forceinline__ Factors(const MmaParams& params, const uint16_t* table,
                                     const T* weights, int step_elements) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      load_weights(b[step], weights + step * step_elements);
      const StepTerms<T> terms(table, step);
#pragma unroll
      for (int word = 0; word < 2; ++word) {
#pragma unroll
        for (int i = 0; i < StepTerms<T>::kElements; ++i)
          place[step][word][i] = terms.place[word][i];
        if (step >= kMasked)  // kept, not made anew for every product
          masks[step - kMasked][word] = static_cast<uint32_t>(
              recomputed(static_cast<int>(StepTerms<T>::mask(params, step, word))));
      }
    }
  }

  // window: of this lane's first pixel; that of the second is 8 pixels, `further` bytes, away.
  __device__ __forceinline__ void multiply(float (&sums)[kTiles][4], const unsigned char* window,
                                           int further) const {
    uint32_t a[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        a[step][part] = load_word<T>(window + part % 2 * further, place[step][part / 2]);
        if (step >= kMasked) a[step][part] &= masks[step - kMasked][part / 2];
      }
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
        fragment::multiply_step<T>(sums[j], a[step], b[step][j][0], b[step][j][1]);
  }
};

// Any number of steps: read anew for every product.
template <class T>
struct Factors<T, 0> {
  const uint16_t* table;
  const T* weights;
  int steps, step_elements;
  uint32_t masks[2];  // of the last step

  __device__ __forceinline__ Factors(const MmaParams& params, const uint16_t* places,
                                     const T* first_weights, int elements)
      : table(places), weights(first_weights), steps(params.steps), step_elements(elements) {
#pragma unroll
    for (int word = 0; word < 2; ++word)
      masks[word] = StepTerms<T>::mask(params, params.steps - 1, word);
  }

  __device__ __forceinline__ void multiply(float (&sums)[kTiles][4], const unsigned char* window,
                                           int further) const {
    const T* row = weights;
#pragma unroll 2
    for (int step = 0; step < steps; ++step, row += step_elements) {
      const StepTerms<T> terms(table, step);
      uint32_t a[4], b[kTiles][2];
#pragma unroll
      for (int part = 0; part < 4; ++part)
        a[part] = terms.word(window + part % 2 * further, part / 2) &
                  (step + 1 < steps ? ~0u : masks[part / 2]);
      load_weights(b, row);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) fragment::multiply_step<T>(sums[j], a, b[j][0], b[j][1]);
    }
  }
};

// Of this lane's channels, zeros beyond the last; null: zeros.
template <class T, bool kWide>
struct OfChannels {
  static constexpr int kLoaded = kWide ? 4 : 1;
  Pack<float, kLoaded> packs[kLaneChannels / kLoaded];

  __device__ __forceinline__ OfChannels(const float* from, int64_t first, int channels) {
#pragma unroll
    for (int i = 0; i < kLaneChannels; i += kLoaded) {
      const int channel = lane_channel<T>(i);
      packs[i / kLoaded] =
          load_global_or_zero(reinterpret_cast<const Pack<float, kLoaded>*>(from + first + channel),
                              from != nullptr && channel < channels);
    }
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
  constexpr int kStored = kWide ? kPackLanes<T> : 1;
#pragma unroll
  for (int first = 0; first < 2 * kLaneChannels; first += kStored) {
    const int pixel = first / kLaneChannels, channel = lane_channel<T>(first % kLaneChannels);
    float stored[kStored];
#pragma unroll
    for (int i = 0; i < kStored; ++i) stored[i] = values[first + i];
    store_global_if(reinterpret_cast<Pack<T, kStored>*>(y + pixel * further + channel),
                    pack<T>(stored), inside[pixel] && channel < channels);
  }
}

// kSteps 0: any number.
template <class T, int kSteps, bool kWide>
__device__ __forceinline__ void run_mma_block(const MmaParams& params) {
  const MmaTile tile(params);
  T* x = reinterpret_cast<T*>(dynamic_shared_memory());
  T* weights = x + params.weights_at;
  auto* table = reinterpret_cast<uint16_t*>(x + params.table_at);
  stage_rows(params, tile, x);
  commit_copies();
  const int lane = fragment::lane(), pixel_out = lane / 4;
  const int group = warp_index() & (params.groups - 1);
  const int64_t first_channel =
      tile.first_channel + group * kGroup + lane % 4 * kPackLanes<T>;
  const int64_t left = params.channels_out - first_channel;
  const int channels = left < kGroup ? static_cast<int>(left) : kGroup;
  const OfChannels<T, kWide> scales(params.epilogue.scale, first_channel, channels);
  const OfChannels<T, kWide> bias(params.epilogue.bias, first_channel, channels);
  stage_weights<T, kSteps>(params, tile, weights);
  stage_places<T>(params, table);
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
  const SharedTile<T, kTermDepth<T>> tiles{weights};
  const Factors<T, kSteps> factors(params, table, fragment::b_rows(tiles, group * kGroup, 0, lane),
                                   params.groups * kGroup * kTermDepth<T>);

  // The warps of a group take every warps_a_group-th segment.
  int row = 0, segment = warp_index() >> params.groups_log2;
#pragma unroll 1
  while (true) {
    for (; segment >= params.segments; segment -= params.segments) ++row;
    if (row >= rows) return;
    const int first = segment * kSegment;
    const T* window = windows + row * params.stride_h * params.pitch + first * pixel;
    float sums[kTiles][4] = {};
    factors.multiply(sums, reinterpret_cast<const unsigned char*>(window),
                     8 * pixel * static_cast<int>(sizeof(T)));
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
