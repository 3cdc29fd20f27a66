// The general depthwise convolution: any window. A thread owns a pack of channels of kStrip outputs
// below one another, which share the taps; each of them loads what it reads of x.
#pragma once

#include "kernels/cuda/depthwise_conv.cuh"

namespace fastdw::cuda::depthwise {

struct DirectParams {
  const void* x;
  const void* weight;
  void* y;
  Epilogue epilogue;
  Pitches x_pitch, y_pitch;
  int64_t height, width, height_out, width_out, multiplier, packs, strips, threads;
  Window window;
  bool planes;
};

constexpr int kStrip = 4;

template <class T, int kLanes>
__device__ __forceinline__ void direct(const DirectParams& params) {
  using Packed = Pack<T, kLanes>;
  const Window& window = params.window;
  int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= params.threads) return;
  const auto next_digit = [&index](int64_t base) {
    const int64_t digit = index % base;
    index /= base;
    return digit;
  };
  int64_t pack_index = params.planes ? 0 : next_digit(params.packs);
  const int64_t column = next_digit(params.width_out);
  const int64_t first_row = next_digit(params.strips) * kStrip;
  if (params.planes) pack_index = next_digit(params.packs);
  const T* x = static_cast<const T*>(params.x) + index * params.x_pitch.image +
               pack_index / params.multiplier * params.x_pitch.pack;
  const int64_t taps = window.kernel_h * window.kernel_w;
  const T* weight = static_cast<const T*>(params.weight) + pack_index * kLanes * taps;
  float sums[kStrip][kLanes] = {};
#pragma unroll 1
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t i = tap / window.kernel_w, j = tap % window.kernel_w;
    const int64_t from = column * window.stride_w - window.pad_left + j * window.dilation_w;
    float values[kLanes];
#pragma unroll
    for (int c = 0; c < kLanes; ++c) values[c] = to_float(load_global(weight + c * taps + tap));
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      const int64_t row =
          (first_row + r) * window.stride_h - window.pad_top + i * window.dilation_h;
      const bool inside = first_row + r < params.height_out && from >= 0 && from < params.width &&
                          row >= 0 && row < params.height;
      const T* place = x + row * params.x_pitch.row + from * params.x_pitch.column;
      float under[kLanes];
      unpack(under, load_global_or_zero(reinterpret_cast<const Packed*>(place), inside));
#pragma unroll
      for (int c = 0; c < kLanes; ++c) sums[r][c] = fmaf(under[c], values[c], sums[r][c]);
    }
  }
  const Activate activate(params.epilogue.activation);
  T* y = static_cast<T*>(params.y) + index * params.y_pitch.image +
         pack_index * params.y_pitch.pack + column * params.y_pitch.column;
#pragma unroll
  for (int r = 0; r < kStrip; ++r) {
    float values[kLanes];
#pragma unroll
    for (int c = 0; c < kLanes; ++c) {
      const int64_t channel = pack_index * kLanes + c;
      values[c] = activate(fmaf(sums[r][c], scale_of(params.epilogue, channel, true),
                                bias_of(params.epilogue, channel, true)));
    }
    const int64_t row = first_row + r;
    store_global_if(reinterpret_cast<Packed*>(y + row * params.y_pitch.row), pack<T>(values),
                    row < params.height_out);
  }
}

}  // namespace fastdw::cuda::depthwise
