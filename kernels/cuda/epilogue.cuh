// y = activation(scale * sum + bias), the same for every kernel. none, relu and relu6 are one clamp;
// the branch to the smooth ones is the same for all threads.
#pragma once

#include <cmath>

#include "kernels/cuda/params.h"
#include "kernels/cuda/ptx.cuh"

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

 private:
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
