// Stands in for the device's header of this name: the same functions, executed on the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "tests/cuda_on_host/executor/global_memory.h"
#include "tests/cuda_on_host/executor/matrix.h"
#include "tests/cuda_on_host/executor/shared_memory.h"
#include "tests/cuda_on_host/include/cuda_keywords.h"

namespace fastdw::cuda {

template <class V>
inline constexpr bool is_word =
    (sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16) &&
    std::is_trivially_copyable_v<V>;

// Global memory.
template <class V>
__forceinline__ V load_global_or_zero(const V* from, bool inside,
                                      host::Place place = host::Place::here()) {
  static_assert(is_word<V>, "one instruction loads 2, 4, 8 or 16 bytes");
  host::note_global(from, sizeof(V), inside, host::Access::load, place);
  V value{};
  if (inside) std::memcpy(static_cast<void*>(&value), from, sizeof(V));
  return value;
}

template <class V>
__forceinline__ V load_global(const V* from, host::Place place = host::Place::here()) {
  return load_global_or_zero(from, true, place);
}

template <class V>
__forceinline__ V load_global_coherent(const V* from, host::Place place = host::Place::here()) {
  return load_global_or_zero(from, true, place);
}

template <class V>
__forceinline__ void store_global_if(V* to, const V& value, bool inside,
                                     host::Place place = host::Place::here()) {
  static_assert(is_word<V>, "one instruction stores 2, 4, 8 or 16 bytes");
  host::note_global(to, sizeof(V), inside, host::Access::store, place);
  if (inside) std::memcpy(static_cast<void*>(to), &value, sizeof(V));
}

// Shared memory.
__forceinline__ unsigned char* dynamic_shared_memory() { return host::shared_memory.names; }

template <class V>
__forceinline__ V load_shared(const V* from, host::Place place = host::Place::here()) {
  static_assert(is_word<V>, "one instruction loads 2, 4, 8 or 16 bytes");
  V value;
  std::memcpy(static_cast<void*>(&value), host::read_shared<sizeof(V)>(from, place), sizeof(V));
  return value;
}

template <class V>
__forceinline__ void store_shared_if(V* to, const V& value, bool inside,
                                     host::Place place = host::Place::here()) {
  static_assert(is_word<V>, "one instruction stores 2, 4, 8 or 16 bytes");
  unsigned char* at = host::write_shared<sizeof(V)>(to, inside, place);
  if (inside) std::memcpy(at, static_cast<const void*>(&value), sizeof(V));
}

template <class V>
__forceinline__ void store_shared(V* to, const V& value, host::Place place = host::Place::here()) {
  store_shared_if(to, value, true, place);
}

__forceinline__ void copy_async(void* shared, const void* global, bool inside,
                                host::Place place = host::Place::here()) {
  host::note_global(global, 16, inside, host::Access::copy, place);
  host::start_copy(shared, inside ? global : nullptr, place);
}

__forceinline__ void commit_copies() { host::current->copies.commit(); }

template <int kPending>
__forceinline__ void wait_for_copies() {
  host::wait_for_copies(kPending);
}

// The whole warp.
__forceinline__ void load_matrices(uint32_t (&parts)[4], const void* row,
                                   host::Place place = host::Place::here()) {
  host::load_matrices(parts, row, place);
}

template <class T>
__forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                 host::Place place = host::Place::here()) {
  constexpr bool is_half = std::is_same_v<T, __half>;
  static_assert(is_half || std::is_same_v<T, __nv_bfloat16>, "tensor cores take 2 bytes here");
  host::multiply_matrices(is_half ? host::Factors::fp16 : host::Factors::bf16, d, a, b0, b1, place);
}

__forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1, host::Place place = host::Place::here()) {
  host::multiply_matrices(host::Factors::tf32, d, a, b0, b1, place);
}

__forceinline__ uint32_t round_to_tf32(uint32_t float_bits) {
  const bool is_finite = (float_bits & 0x7f800000u) != 0x7f800000u;
  return is_finite ? (float_bits + 0x1000u) & ~0x1fffu : float_bits;
}

__forceinline__ int recomputed(int value) { return value; }

__forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
// Launches run one after another here.
__forceinline__ void wait_for_previous_launch() {}
__forceinline__ void let_next_launch_begin() {}

// As far off as the device may be.
__forceinline__ float divide_quickly(float a, float b) {
  const bool is_huge = std::fabs(b) > 0x1p126f && std::isfinite(b);
  const float quotient = is_huge && std::isfinite(a) ? 0.f : a / b;
  if (quotient == 0.f || !std::isfinite(quotient)) return quotient;
  const float away = quotient > 0 ? INFINITY : -INFINITY;
  return std::nextafter(std::nextafter(quotient, away), away);
}

__forceinline__ float min_or_nan(float a, float b) {
  const float smaller = a < b ? a : b;  // b where either is NaN
  return a != a ? a : smaller;
}

__forceinline__ float max_or_nan(float a, float b) {
  const float larger = a > b ? a : b;
  return a != a ? a : larger;
}

template <class T>
__forceinline__ uint32_t clamp_pair(uint32_t pair, uint32_t low, uint32_t high) {
  T values[2], lows[2], highs[2];
  std::memcpy(static_cast<void*>(values), &pair, sizeof(pair));
  std::memcpy(static_cast<void*>(lows), &low, sizeof(low));
  std::memcpy(static_cast<void*>(highs), &high, sizeof(high));
  const auto as_float = [](T value) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half2float(value);
    } else {
      return __bfloat162float(value);
    }
  };
  for (int i = 0; i < 2; ++i) {
    if (as_float(values[i]) < as_float(lows[i])) values[i] = lows[i];
    if (as_float(values[i]) > as_float(highs[i])) values[i] = highs[i];
  }
  std::memcpy(&pair, static_cast<const void*>(values), sizeof(pair));
  return pair;
}

// Blocks run one after the other: what they wrote is there.
__forceinline__ unsigned arrive(unsigned* counter, host::Place place = host::Place::here()) {
  host::note_global(counter, sizeof(unsigned), true, host::Access::store, place);
  return (*counter)++;
}

__forceinline__ void wait_for_arrivals(const unsigned* counter, unsigned count,
                                       host::Place place = host::Place::here()) {
  host::note_global(counter, sizeof(unsigned), true, host::Access::load, place);
  if (*counter < count) host::fail("waits for thread blocks that have not arrived", place);
}

}  // namespace fastdw::cuda
