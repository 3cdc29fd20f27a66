// AVX2 + FMA: 8 lanes, 16 registers.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct Vec {
  static constexpr int lanes = 8;
  __m256 value;

  static FASTDW_INLINE __m256i mask(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }
  static FASTDW_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FASTDW_INLINE Vec load(const float* p, int64_t count) {
    return {_mm256_maskload_ps(p, mask(count))};
  }
  static FASTDW_INLINE Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  static FASTDW_INLINE Vec fill(float value) { return {_mm256_set1_ps(value)}; }
  FASTDW_INLINE void store(float* p) const { _mm256_storeu_ps(p, value); }
  FASTDW_INLINE void store(float* p, int64_t count) const {
    _mm256_maskstore_ps(p, mask(count), value);
  }
};

FASTDW_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.value, b.value)}; }
FASTDW_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.value, b.value)}; }
FASTDW_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.value, b.value)}; }
FASTDW_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}
// The instructions return their second operand where either is NaN.
FASTDW_INLINE Vec min(Vec bound, Vec v) { return {_mm256_min_ps(bound.value, v.value)}; }
FASTDW_INLINE Vec max(Vec bound, Vec v) { return {_mm256_max_ps(bound.value, v.value)}; }
FASTDW_INLINE Vec max_or_nan(Vec a, Vec b) {
  const __m256 is_nan = _mm256_cmp_ps(a.value, a.value, _CMP_UNORD_Q);
  return {_mm256_blendv_ps(_mm256_max_ps(a.value, b.value), a.value, is_nan)};
}
// 2^n for t = n + kExp2Shift, |n| <= 126.
FASTDW_INLINE Vec exp2_of_shifted(Vec t) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t.value), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
}
FASTDW_INLINE Vec times_exp2(Vec v, Vec n) { return times_exp2_in_halves(v, n); }
FASTDW_INLINE Vec reciprocal(Vec v) { return Vec::fill(1.0f) / v; }

constexpr int kTileRows = 6;  // 6 x 2 accumulators + 2 weights + 1 broadcast = 15 of 16 registers
constexpr int kTileBlocks = 1;
constexpr int kLinearBlocks = 4;

}  // namespace
}  // namespace fastdw
