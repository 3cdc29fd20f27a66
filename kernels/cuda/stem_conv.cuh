// y[n, r, q, o] = act(scale[o] sum_{c,i,j} w[o][c][i][j] x[n, c, r s - top + i, q s - left + j] +
// bias[o]) Dense, few input channels; x is planes (NCHW) or NHWC, y NHWC. A thread block computes
// `rows` by `strips` strips of kPixels output pixels, fewer where threads
// are. It stages the rows of x under them as planes
// and the weights as [k][output channel], both fp32; a thread adds up one strip's pixels by 8
// channels.
#pragma once

#include "kernels/cuda/dtype.cuh"
#include "kernels/cuda/epilogue.cuh"

namespace fastdw::cuda::stem {

constexpr int kChannels = 8;
constexpr int kQuad = 4;  // floats of 16 bytes
using Quad = Pack<float, kQuad>;

struct Params {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  int64_t x_image, x_channel, x_row, x_column;  // elements from one to the next
  int64_t batch, channels_in, channels_out;
  int32_t height, width, height_out, width_out;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_left, pad_top;
  bool channels_last, chunked;
  int32_t packs, strips, rows;  // of a thread block; a pack: kChannels output channels
  int32_t pixels;               // of a strip
  uint32_t pack_groups, column_tiles;
  int32_t channels_at_once;                // input channels staged at a time
  int32_t rows_in, x_pitch, weight_pitch;  // staged; pitches in floats
};

// Where a thread block's output begins, and its input.
struct Tile {
  int64_t image, first_pack;
  int row_out, column_out, row_in, column_in;

  __device__ __forceinline__ explicit Tile(const Params& params) {
    uint32_t index = blockIdx.x;
    first_pack = int64_t{index % params.pack_groups} * params.packs;
    index /= params.pack_groups;
    column_out = static_cast<int>(index % params.column_tiles) * params.strips * params.pixels;
    row_out = static_cast<int>(index / params.column_tiles) * params.rows;
    row_in = row_out * params.stride_h - params.pad_top;
    column_in = column_out * params.stride_w - params.pad_left;
    image = blockIdx.y + int64_t{gridDim.y} * blockIdx.z;
  }
};

// values[i] becomes what values[(i + by) % 4] was.
__device__ __forceinline__ void rotate(float (&)[1], int) {}
__device__ __forceinline__ void rotate(float (&values)[kQuad], int by) {
  const bool by_one = by & 1, by_two = by & 2;
  const float odd[kQuad] = {by_one ? values[1] : values[0], by_one ? values[2] : values[1],
                            by_one ? values[3] : values[2], by_one ? values[0] : values[3]};
#pragma unroll
  for (int i = 0; i < kQuad; ++i) values[i] = by_two ? odd[(i + 2) % kQuad] : odd[i];
}

// x as [channel][row][x_pitch], zeros outside the image. A warp takes a row, kChunk values a lane.
// More than one: a row of the image is whole chunks, and all channels are staged.
template <class T, int kChunk>
__device__ __forceinline__ void stage_x(const Params& params, const Tile& tile, int first_channel,
                                        int channels, float* shared) {
  const T* x = static_cast<const T*>(params.x) + tile.image * params.x_image +
               first_channel * params.x_channel;
  constexpr int kAlign = kChunk > 1 ? 32 / static_cast<int>(sizeof(T)) : 1;  // to whole sectors
  const int inner = params.channels_last ? channels : 1;  // values of a pixel in a row
  const int planes = params.channels_last ? 1 : channels;
  const int begin = tile.column_in * inner, end = begin + params.x_pitch * inner;
#pragma unroll 1
  for (int line = static_cast<int>(threadIdx.x) / 32; line < planes * params.rows_in;
       line += static_cast<int>(blockDim.x) / 32) {
    const int plane = line / params.rows_in, row = line % params.rows_in;
    const int row_in = tile.row_in + row;
    const bool row_inside = row_in >= 0 && row_in < params.height;
    const T* from = x + plane * params.x_channel + row_in * params.x_row;
    float* to = shared + (plane * params.rows_in + row) * params.x_pitch;
    const auto column_of = [&](int value) {
      return inner == 1 ? value - begin : (value - begin) / inner;
    };
#pragma unroll 2
    for (int warps = begin & -kAlign; warps < end; warps += 32 * kChunk) {
      const int first = warps + static_cast<int>(threadIdx.x) % 32 * kChunk;
      const int64_t place = kChunk > 1 ? first
                                       : first + column_of(first) * (params.x_column - inner) +
                                             tile.column_in * (params.x_column - inner);
      const bool inside = row_inside && first >= 0 && first < end && first < params.width * inner;
      float values[kChunk];
      unpack(values,
             load_global_or_zero(reinterpret_cast<const Pack<T, kChunk>*>(from + place), inside));
      // Lanes begin with different values of their chunk: those 8 apart would meet in one bank.
      const int turn = static_cast<int>(threadIdx.x) / 8 % kChunk;
      rotate(values, turn);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int value = first + (i + turn) % kChunk, column = column_of(value);
        const int channel = value - begin - column * inner;
        store_shared_if(to + channel * params.rows_in * params.x_pitch + column, values[i],
                        value >= begin && value < end);
      }
    }
  }
}

// Where channel i of a pack lies among the outputs of the thread block. A pack is two quads that
// are stored one by one where a quad is 16 bytes; then those of neighbouring packs lie together.
template <class T>
__device__ __forceinline__ int output_of(int pack, int i, int packs) {
  return sizeof(T) == 4 ? (i / kQuad * packs + pack) * kQuad + i % kQuad : pack * kChannels + i;
}

// Between output channels' weights as staged: 8 k of 4 of them lie in different banks. At most
// kRawPadding more than there are.
constexpr int kRawPadding = 15;
__device__ __forceinline__ int raw_pitch(int terms) { return (terms + 7) / 16 * 16 + 8; }

// The weights as they lie in memory, [output channel][k]: read once, without gaps.
template <class T>
__device__ __forceinline__ void stage_raw_weights(const Params& params, const Tile& tile,
                                                  int first_channel, int channels, T* raw) {
  const int taps = params.kernel_h * params.kernel_w, terms = channels * taps;
  const int64_t first_output = tile.first_pack * kChannels;
  const int64_t depth = params.channels_in * taps;
  const T* from = static_cast<const T*>(params.weight) + first_output * depth +
                  static_cast<int64_t>(first_channel) * taps;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < params.packs * kChannels * terms;
       i += static_cast<int>(blockDim.x)) {
    const int output = i / terms, k = i - output * terms;
    const bool inside = first_output + output < params.channels_out;
    store_shared(raw + output * raw_pitch(terms) + k,
                 load_global_or_zero(inside ? from + output * depth + k : from, inside));
  }
}

// The scale multiplied in, as [k][2][pack][4]: a warp of sums reads quads that lie together. A warp
// moves 8 k of a quad, which weight_pitch keeps in different banks.
template <class T>
__device__ __forceinline__ void arrange_weights(const Params& params, const Tile& tile, int terms,
                                                const T* raw, float* weights) {
  const int lane = static_cast<int>(threadIdx.x) % 32, i = lane / 8;
#pragma unroll 1
  for (int quad = static_cast<int>(threadIdx.x) / 32; quad < 2 * params.packs;
       quad += static_cast<int>(blockDim.x) / 32) {
    const int half = quad / params.packs, pack = quad - half * params.packs;
    const int output = output_of<T>(pack, half * kQuad + i, params.packs);
    const int64_t channel_out = tile.first_pack * kChannels + output;
    const float scale = scale_of(params.epilogue, channel_out, channel_out < params.channels_out);
    for (int first = 0; first < terms; first += 8) {
      const int k = first + lane % 8;
      const T* from = raw + output * raw_pitch(terms) + (k < terms ? k : terms - 1);
      const float weight = to_float(load_shared(from));
      store_shared_if(weights + k * params.weight_pitch + quad * kQuad + i, weight * scale,
                      k < terms);
    }
  }
}

__device__ __forceinline__ void load_weights(float (&weights)[kChannels], const float* row,
                                             int packs) {
#pragma unroll
  for (int half = 0; half < kChannels / kQuad; ++half) {
    const Quad quad = load_shared(reinterpret_cast<const Quad*>(row) + half * packs);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) weights[half * kQuad + i] = quad.lane[i];
  }
}

// One row of the kernel: x and weights at its first tap. kKernel and kStride 0: known at run time.
template <int kKernel, int kStride, int kPixels>
__device__ __forceinline__ void add_kernel_row(float (&sums)[kPixels][kChannels], const float* x,
                                               const float* weights, const Params& params) {
  if constexpr (kKernel > 0) {
    constexpr int kWindow = (kPixels - 1) * kStride + kKernel;
    constexpr int kQuads = (kWindow + kQuad - 1) / kQuad;
    float window[kQuads * kQuad];
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const Quad quad = load_shared(reinterpret_cast<const Quad*>(x) + i);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) window[i * kQuad + j] = quad.lane[j];
    }
#pragma unroll
    for (int tap = 0; tap < kKernel; ++tap) {
      float weight[kChannels];
      load_weights(weight, weights + tap * params.weight_pitch, params.packs);
#pragma unroll
      for (int p = 0; p < kPixels; ++p)
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          sums[p][c] = fmaf(window[p * kStride + tap], weight[c], sums[p][c]);
    }
  } else {
#pragma unroll 1
    for (int tap = 0; tap < params.kernel_w; ++tap) {
      float weight[kChannels];
      load_weights(weight, weights + tap * params.weight_pitch, params.packs);
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const float value = load_shared(x + p * params.stride_w + tap);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sums[p][c] = fmaf(value, weight[c], sums[p][c]);
      }
    }
  }
}

// kWide: whole 16-byte packs; else element by element, the last pack cut off.
template <class T, bool kWide, int kPixels>
__device__ __forceinline__ void store_strip(const Params& params, float (&sums)[kPixels][kChannels],
                                            int64_t pixel, int64_t first_channel, int pack_index,
                                            int pixels) {
  const Activate activate(params.epilogue.activation);
  constexpr int kStored = kWide ? kPackLanes<T> : 1;
  const auto channel_of = [&](int i) {
    return first_channel + output_of<T>(pack_index, i, params.packs);
  };
  float bias[kChannels];
  constexpr int kLoaded = kWide ? kQuad : 1;
#pragma unroll
  for (int i = 0; i < kChannels; i += kLoaded) {
    Pack<float, kLoaded> loaded{};
    if (params.epilogue.bias != nullptr)
      loaded = load_global_or_zero(
          reinterpret_cast<const Pack<float, kLoaded>*>(params.epilogue.bias + channel_of(i)),
          channel_of(i) < params.channels_out);
#pragma unroll
    for (int j = 0; j < kLoaded; ++j) bias[i + j] = loaded.lane[j];
  }
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) sums[p][i] += bias[i];
    activate.apply(sums[p]);
    T* y = static_cast<T*>(params.y) + (pixel + p) * params.channels_out;
#pragma unroll
    for (int first = 0; first < kChannels; first += kStored) {
      float values[kStored];
#pragma unroll
      for (int i = 0; i < kStored; ++i) values[i] = sums[p][first + i];
      store_global_if(reinterpret_cast<Pack<T, kStored>*>(y + channel_of(first)), pack<T>(values),
                      p < pixels && channel_of(first) < params.channels_out);
    }
  }
}

template <class T, int kKernel, int kStride, int kPixels, bool kWide>
__device__ __forceinline__ void run_block(const Params& params) {
  const Tile tile(params);
  if (tile.image >= params.batch) return;  // the whole thread block
  auto* x = reinterpret_cast<float*>(dynamic_shared_memory());
  float* weights = x + params.channels_at_once * params.rows_in * params.x_pitch;
  T* raw = reinterpret_cast<T*>(weights + params.channels_at_once * params.kernel_h *
                                              params.kernel_w * params.weight_pitch);
  int index = static_cast<int>(threadIdx.x);
  const int pack_index = index % params.packs;
  index /= params.packs;
  const int strip = index % params.strips, row = index / params.strips;
  const bool active = row < params.rows;
  float sums[kPixels][kChannels] = {};
#pragma unroll 1
  for (int first = 0; first < params.channels_in; first += params.channels_at_once) {
    const int channels = params.channels_in - first < params.channels_at_once
                             ? static_cast<int>(params.channels_in) - first
                             : params.channels_at_once;
    if (first > 0) __syncthreads();
    if (params.chunked) {
      stage_x<T, kQuad>(params, tile, first, channels, x);
    } else {
      stage_x<T, 1>(params, tile, first, channels, x);
    }
    stage_raw_weights(params, tile, first, channels, raw);
    __syncthreads();
    arrange_weights(params, tile, channels * params.kernel_h * params.kernel_w, raw, weights);
    __syncthreads();
    if (!active) continue;
    const float* taps = weights + pack_index * kQuad;
    const float* from =
        x + row * params.stride_h * params.x_pitch + strip * kPixels * params.stride_w;
#pragma unroll 1
    for (int channel = 0; channel < channels; ++channel) {
#pragma unroll 1
      for (int i = 0; i < params.kernel_h; ++i) {
        add_kernel_row<kKernel, kStride>(sums, from + i * params.x_pitch, taps, params);
        taps += params.kernel_w * params.weight_pitch;
      }
      from += params.rows_in * params.x_pitch;
    }
  }
  const int row_out = tile.row_out + row, column = tile.column_out + strip * kPixels;
  const int64_t pixel = (tile.image * params.height_out + row_out) * params.width_out + column;
  const bool inside = active && row_out < params.height_out;
  store_strip<T, kWide>(params, sums, pixel, tile.first_pack * kChannels, pack_index,
                        inside ? params.width_out - column : 0);
}

// Any size: a thread owns one output, nothing is staged.
struct DirectParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  int64_t x_image, x_channel, x_row, x_column;
  int64_t height, width, height_out, width_out, channels_in, channels_out, threads;
  Window window;
};

template <class T>
__device__ __forceinline__ void direct(const DirectParams& params) {
  const Window& window = params.window;
  int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= params.threads) return;
  T* y = static_cast<T*>(params.y) + index;
  const int64_t channel_out = index % params.channels_out;
  index /= params.channels_out;
  const int64_t left = index % params.width_out * window.stride_w - window.pad_left;
  index /= params.width_out;
  const int64_t top = index % params.height_out * window.stride_h - window.pad_top;
  const T* x = static_cast<const T*>(params.x) + index / params.height_out * params.x_image;
  const T* weight = static_cast<const T*>(params.weight) +
                    channel_out * params.channels_in * window.kernel_h * window.kernel_w;
  float sum = 0.f;
  for (int64_t channel = 0; channel < params.channels_in; ++channel)
    for (int64_t row = top; row < top + window.kernel_h; ++row)
      for (int64_t column = left; column < left + window.kernel_w; ++column, ++weight) {
        const bool inside = row >= 0 && row < params.height && column >= 0 && column < params.width;
        const T* from =
            x + channel * params.x_channel + row * params.x_row + column * params.x_column;
        sum = fmaf(to_float(load_global_or_zero(from, inside)), to_float(load_global(weight)), sum);
      }
  const Activate activate(params.epilogue.activation);
  store_global_if(y,
                  from_float<T>(activate(fmaf(sum, scale_of(params.epilogue, channel_out, true),
                                              bias_of(params.epilogue, channel_out, true)))),
                  true);
}

}  // namespace fastdw::cuda::stem
