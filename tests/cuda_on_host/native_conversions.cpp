// The conversions of include/cuda_fp16.h and cuda_bf16.h as functions, to test them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

#define FASTDW_CONVERSION extern "C" __attribute__((visibility("default")))

FASTDW_CONVERSION void fastdw_from_half(const __half* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = __half2float(from[i]);
}

FASTDW_CONVERSION void fastdw_to_half(const float* from, __half* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = __float2half_rn(from[i]);
}

FASTDW_CONVERSION void fastdw_from_bfloat16(const __nv_bfloat16* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = __bfloat162float(from[i]);
}

FASTDW_CONVERSION void fastdw_to_bfloat16(const float* from, __nv_bfloat16* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = __float2bfloat16_rn(from[i]);
}
