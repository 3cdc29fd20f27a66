// Included before everything else (-include): what nvcc knows without a header. There is no
// __shared__: kernels use dynamic_shared_memory() alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/cuda_on_host/executor/counters.h"
#include "tests/cuda_on_host/executor/warp.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::fastdw::host::current->index)
inline const uint3& blockIdx = fastdw::host::block.index;
inline const dim3& blockDim = fastdw::host::block.block_size;
inline const dim3& gridDim = fastdw::host::block.grid_size;

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

using FastdwPlace = fastdw::host::Place;

// One rounding, as on the device, where the machine has it; counted.
inline float fastdw_multiply_add(float a, float b, float c) {
  fastdw::host::count_multiply_adds(1);
  return a * b + c;
}
#define fmaf(a, b, c) fastdw_multiply_add(a, b, c)

inline void __syncthreads(FastdwPlace place = FastdwPlace::here()) {
  fastdw::host::sync_block(place);
}

inline void __syncwarp(uint32_t mask = ~0u, FastdwPlace place = FastdwPlace::here()) {
  fastdw::host::sync_warp(mask, place);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32,
              FastdwPlace place = FastdwPlace::here()) {
  return fastdw::host::shuffle(fastdw::host::Shuffle::index, mask, value, from, width, place);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32,
                 FastdwPlace place = FastdwPlace::here()) {
  return fastdw::host::shuffle(fastdw::host::Shuffle::up, mask, value, by, width, place);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32,
                   FastdwPlace place = FastdwPlace::here()) {
  return fastdw::host::shuffle(fastdw::host::Shuffle::down, mask, value, by, width, place);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  FastdwPlace place = FastdwPlace::here()) {
  return fastdw::host::shuffle(fastdw::host::Shuffle::exclusive_or, mask, value, bits, width,
                               place);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              FastdwPlace place = FastdwPlace::here()) {
  return fastdw::host::ballot(mask, predicate, place);
}
