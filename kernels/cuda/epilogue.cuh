// y = activation(scale * sum + bias), the same for every kernel. none, relu and relu6 are one clamp;
// the branch to the smooth ones is the same for all threads.
#pragma once

#include <cmath>

#include "kernels/cuda/params.h"
#include "kernels/cuda/dtype.cuh"

namespace fastdw::cuda {

struct Activate {
  float low, high;
  Activation kind;

  __device__ __forceinline__ explicit Activate(Activation activation)
      : low(activation == Activation::none ? -INFINITY : 0.f),
        high(activation == Activation::relu6 ? 6.f : INFINITY),
        kind(activation) {}

  __device__ __forceinline__ float operator()(float value) const {
    return is_clamp() ? clamp(value) : smooth(value);
  }

  // One branch for all.
  template <int kCount>
  __device__ __forceinline__ void apply(float (&values)[kCount]) const {
    if (is_clamp()) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = clamp(values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = smooth(values[i]);
    }
  }

  // The same, then rounded, by twos. Elements of 2 bytes are clamped after they have been rounded,
  // which gives the same bits: the bounds are such elements.
  template <class T, int kCount>
  __device__ __forceinline__ void apply(Pack<T, 2> (&pairs)[kCount],
                                        float (&values)[2 * kCount]) const {
    const bool clamps_pairs = sizeof(T) == 2 && is_clamp();
    if (!clamps_pairs) apply(values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) pairs[i] = pack<T>({values[2 * i], values[2 * i + 1]});
    if constexpr (sizeof(T) == 2) {
      if (!clamps_pairs) return;
      const uint32_t lows = pair_of<T>(low), highs = pair_of<T>(high);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        uint32_t word;
        __builtin_memcpy(&word, &pairs[i], sizeof(word));
        word = clamp_pair<T>(word, lows, highs);
        __builtin_memcpy(static_cast<void*>(&pairs[i]), &word, sizeof(word));
      }
    }
  }

 private:
  template <class T>
  __device__ __forceinline__ static uint32_t pair_of(float value) {
    const T pair[2] = {from_float<T>(value), from_float<T>(value)};
    uint32_t word;
    __builtin_memcpy(&word, pair, sizeof(word));
    return word;
  }

  __device__ __forceinline__ bool is_clamp() const {
    return kind != Activation::hardswish && kind != Activation::silu;
  }

  __device__ __forceinline__ float clamp(float value) const {
    return min_or_nan(max_or_nan(value, low), high);
  }

  __device__ __forceinline__ float smooth(float value) const {
    if (kind == Activation::hardswish)
      return value * min_or_nan(max_or_nan(value + 3.f, 0.f), 6.f) * (1.f / 6.f);
    return divide_quickly(value, 1.f + expf(-value));
  }
};

__device__ __forceinline__ float scale_of(const Epilogue& epilogue, int64_t channel, bool inside) {
  return epilogue.scale == nullptr ? 1.f
                                   : load_global_or_zero(epilogue.scale + channel, inside);
}

__device__ __forceinline__ float bias_of(const Epilogue& epilogue, int64_t channel, bool inside) {
  return epilogue.bias == nullptr ? 0.f : load_global_or_zero(epilogue.bias + channel, inside);
}

}  // namespace fastdw::cuda
