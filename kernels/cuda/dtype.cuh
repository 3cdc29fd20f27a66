// Elements in memory and in registers: stored as fp32, fp16 or bf16, computed with in fp32.
#pragma once

#include <type_traits>

#include "kernels/cuda/ptx.cuh"

namespace fastdw::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// kCount neighbouring elements that move as one.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T lane[kCount];
};

// 16 bytes, what one lane loads at best: 8 channels of 2 bytes, 4 of 4.
template <class T>
constexpr int kPackLanes = 16 / static_cast<int>(sizeof(T));
template <class T>
using WidePack = Pack<T, kPackLanes<T>>;

// The two elements of a word: taken as words, 2-byte elements need no more registers than bytes.
template <class T>
__device__ __forceinline__ void split_word(float& low, float& high, uint32_t word) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  } else {
    const uint16_t bits[2] = {static_cast<uint16_t>(word), static_cast<uint16_t>(word >> 16)};
    T halves[2];
    __builtin_memcpy(halves, bits, sizeof(bits));
    low = to_float(halves[0]);
    high = to_float(halves[1]);
  }
}

template <class T, int kCount>
__device__ __forceinline__ void unpack(float (&values)[kCount], const Pack<T, kCount>& pack) {
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    uint32_t words[kCount / 2];
    __builtin_memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i)
      split_word<T>(values[2 * i], values[2 * i + 1], words[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = to_float(pack.lane[i]);
  }
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> pack(const float (&values)[kCount]) {
  Pack<T, kCount> result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) result.lane[i] = from_float<T>(values[i]);
  return result;
}

}  // namespace fastdw::cuda
