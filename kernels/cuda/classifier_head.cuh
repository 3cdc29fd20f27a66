// mean[n][k] = sum_p x[n][p][k] / pixels, y[n][o] = sum_k mean[n][k] w[o][k] + bias[o]; x NHWC, the
// mean in fp32. The pool: lanes along 128 bytes of channels, warps and the rest of the lanes along
// the pixels. The linear layer reads each weight once for several images: a warp has some outputs
// of some images, its lanes go along k, and shuffles add them up; warps share x in shared memory.
#pragma once

#include "kernels/cuda/dtype.cuh"

namespace fastdw::cuda {

struct PoolParams {
  const void* x;
  void* y;  // fp32, or the dtype
  int64_t pixels, channels, channel_blocks;
};

struct LinearParams {
  const void* x;  // fp32, or the dtype
  const void* weight;
  const void* bias;   // or null
  bool bias_is_fp32;  // else in the dtype
  void* y;
  int64_t batch, channels_in, channels_out, output_blocks;
};

namespace head {

constexpr int kPoolThreads = 256;
constexpr int kPoolAcross = 8;                         // threads along channels
constexpr int kPoolDown = kPoolThreads / kPoolAcross;  // along pixels
constexpr int kPoolDownInWarp = 32 / kPoolAcross;

template <int kLanes>
constexpr int kPoolBytes = kPoolDown / kPoolDownInWarp * kPoolAcross * kLanes * 4;

// kLanes channels a thread.
template <class T, class Out, int kLanes>
__device__ __forceinline__ void pool(const PoolParams& params) {
  using In = Pack<T, kLanes>;
  const int thread = static_cast<int>(threadIdx.x), across = thread % kPoolAcross;
  const int64_t image = blockIdx.x / params.channel_blocks;
  const int64_t block = blockIdx.x % params.channel_blocks;
  const int64_t channel = (block * kPoolAcross + across) * kLanes;
  const bool inside = channel < params.channels;
  const T* x = static_cast<const T*>(params.x) + image * params.pixels * params.channels;
  float sums[kLanes] = {};
#pragma unroll 4
  for (int64_t first = 0; first < params.pixels; first += kPoolDown) {
    const int64_t pixel = first + thread / kPoolAcross;
    const bool loads = inside && pixel < params.pixels;
    const T* from = x + (loads ? pixel * params.channels + channel : 0);
    float values[kLanes];
    unpack(values, load_global_or_zero(reinterpret_cast<const In*>(from), loads));
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sums[i] += values[i];
  }
  float* parts = reinterpret_cast<float*>(dynamic_shared_memory());  // [warp][channel]
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
#pragma unroll
    for (int distance = kPoolAcross; distance < 32; distance *= 2)
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], distance);
    store_shared_if(parts + (thread / 32 * kLanes + i) * kPoolAcross + across, sums[i],
                    thread % 32 < kPoolAcross);
  }
  __syncthreads();
  // One thread a channel: (i, across) as above.
  const int64_t mine = (block * kPoolAcross + thread % kPoolAcross) * kLanes + thread / kPoolAcross;
  if (thread >= kPoolAcross * kLanes) return;
  float sum = 0.f;
#pragma unroll
  for (int warp = 0; warp < kPoolThreads / 32; ++warp)
    sum += load_shared(parts + warp * kLanes * kPoolAcross + thread);
  const bool stores = mine < params.channels;
  store_global_if(static_cast<Out*>(params.y) + (stores ? image * params.channels + mine : 0),
                  from_float<Out>(sum / static_cast<float>(params.pixels)), stores);
}

// One instance of the linear layer: X is what x holds, kLanes of k a lane at a time, kImages rows
// of x by kOutputs rows of the weight a warp.
template <class T_, class X_, int kLanes_, int kImages_, int kOutputs_>
struct Linear {
  using T = T_;
  using X = X_;
  static constexpr int kLanes = kLanes_, kImages = kImages_, kOutputs = kOutputs_;
  static constexpr int kWarps = kImages <= 4 ? 16 : 8, kThreads = kWarps * 32;
  static constexpr int kSteps = 8 / kOutputs;  // weights that a lane holds: 8 loads under way
  static constexpr int kDepth = kSteps * 32 * kLanes;  // k of a stage
  static constexpr int kPart = kLanes < kPackLanes<X> ? kLanes : kPackLanes<X>;
  static constexpr int kParts = kLanes / kPart;  // loads of x a lane, image and step
  static constexpr int kSharedBytes = kImages * kDepth * static_cast<int>(sizeof(X));
  using Part = Pack<X, kPart>;

  // Where a part of x is staged: a quarter of a warp writes and reads 8 that lie side by side.
  __device__ __forceinline__ static Part* staged(int image, int step, int part, int lane) {
    return reinterpret_cast<Part*>(dynamic_shared_memory()) +
           ((image * kSteps + step) * kParts + part) * 32 + (lane ^ part * 4);
  }
};

// kDepth values of each image from `first` on, zeros beyond the last.
template <class Linear>
__device__ __forceinline__ void stage_x(const LinearParams& params, int64_t first_image,
                                        int64_t first) {
  using X = typename Linear::X;
  constexpr int kRowParts = Linear::kDepth / Linear::kPart;
  const X* x = static_cast<const X*>(params.x);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Linear::kImages * kRowParts;
       i += Linear::kThreads) {
    const int image = i / kRowParts, index = i % kRowParts;
    const int64_t k = first + index * Linear::kPart, row = first_image + image;
    const bool inside = k < params.channels_in && row < params.batch;
    const X* from = x + (inside ? row * params.channels_in + k : 0);
    auto* to = Linear::staged(image, index / (32 * Linear::kParts), index % Linear::kParts,
                              index / Linear::kParts % 32);
    if constexpr (Linear::kLanes > 1)
      copy_async(to, from, inside);
    else
      store_shared(to, load_global_or_zero(reinterpret_cast<const typename Linear::Part*>(from),
                                           inside));
  }
  commit_copies();
}

template <class T>
__device__ __forceinline__ float bias_of(const LinearParams& params, int64_t output, bool inside) {
  if (params.bias == nullptr) return 0.f;
  if (params.bias_is_fp32)
    return load_global_or_zero(static_cast<const float*>(params.bias) + output, inside);
  return to_float(load_global_or_zero(static_cast<const T*>(params.bias) + output, inside));
}

// A thread block stages x once for its warps, while the first weights are on their way.
template <class Linear>
__device__ __forceinline__ void linear(const LinearParams& params) {
  using T = typename Linear::T;
  constexpr int kImages = Linear::kImages, kOutputs = Linear::kOutputs, kLanes = Linear::kLanes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t first_image = blockIdx.x / params.output_blocks * kImages;
  const int64_t first_output =
      (blockIdx.x % params.output_blocks * Linear::kWarps + thread / 32) * kOutputs;
  const int64_t depth = params.channels_in;
  const T* weight = static_cast<const T*>(params.weight);
  float sums[kImages][kOutputs] = {};
#pragma unroll 1
  for (int64_t first = 0; first < depth; first += Linear::kDepth) {
    if (first > 0) __syncthreads();
    stage_x<Linear>(params, first_image, first);
    Pack<T, kLanes> held[Linear::kSteps][kOutputs];
#pragma unroll
    for (int step = 0; step < Linear::kSteps; ++step)
#pragma unroll
      for (int output = 0; output < kOutputs; ++output) {
        const int64_t k = first + (step * 32 + lane) * kLanes;
        const bool inside = k < depth && first_output + output < params.channels_out;
        const T* from = weight + (inside ? (first_output + output) * depth + k : 0);
        held[step][output] =
            load_global_or_zero(reinterpret_cast<const Pack<T, kLanes>*>(from), inside);
      }
    wait_for_copies<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < Linear::kSteps; ++step) {
      float weights[kOutputs][kLanes];
#pragma unroll
      for (int output = 0; output < kOutputs; ++output)
        unpack(weights[output], held[step][output]);
#pragma unroll
      for (int image = 0; image < kImages; ++image)
#pragma unroll
        for (int part = 0; part < Linear::kParts; ++part) {
          float values[Linear::kPart];
          unpack(values, load_shared(Linear::staged(image, step, part, lane)));
#pragma unroll
          for (int output = 0; output < kOutputs; ++output)
#pragma unroll
            for (int i = 0; i < Linear::kPart; ++i)
              sums[image][output] = fmaf(values[i], weights[output][part * Linear::kPart + i],
                                         sums[image][output]);
        }
    }
  }
#pragma unroll
  for (int image = 0; image < kImages; ++image)
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
      float sum = sums[image][output];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      const int64_t row = first_image + image, column = first_output + output;
      const bool inside = row < params.batch && column < params.channels_out;
      const bool stores = inside && lane == (image * kOutputs + output) % 32;
      sum += bias_of<T>(params, stores ? column : 0, stores);
      store_global_if(static_cast<T*>(params.y) + (stores ? row * params.channels_out + column : 0),
                      from_float<T>(sum), stores);
    }
}

}  // namespace head
}  // namespace fastdw::cuda
