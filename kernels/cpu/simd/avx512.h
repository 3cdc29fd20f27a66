// AVX-512: 16 lanes, 32 registers.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct Vec {
  static constexpr int lanes = 16;
  __m512 value;

  static FASTDW_INLINE __mmask16 mask(int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1u);
  }
  static FASTDW_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FASTDW_INLINE Vec load(const float* p, int64_t count) {
    return {_mm512_maskz_loadu_ps(mask(count), p)};
  }
  static FASTDW_INLINE Vec broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  static FASTDW_INLINE Vec fill(float value) { return {_mm512_set1_ps(value)}; }
  FASTDW_INLINE void store(float* p) const { _mm512_storeu_ps(p, value); }
  FASTDW_INLINE void store(float* p, int64_t count) const {
    _mm512_mask_storeu_ps(p, mask(count), value);
  }
};

FASTDW_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.value, b.value)}; }
FASTDW_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.value, b.value)}; }
FASTDW_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.value, b.value)}; }
FASTDW_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
// The instructions return their second operand where either is NaN.
FASTDW_INLINE Vec min(Vec bound, Vec v) { return {_mm512_min_ps(bound.value, v.value)}; }
FASTDW_INLINE Vec max(Vec bound, Vec v) { return {_mm512_max_ps(bound.value, v.value)}; }
FASTDW_INLINE Vec max_or_nan(Vec a, Vec b) {
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.value, b.value), is_nan, a.value)};
}
FASTDW_INLINE Vec times_exp2(Vec v, Vec n) { return {_mm512_scalef_ps(v.value, n.value)}; }
// 14 bits, then a step of Newton's, several times faster than a division. The minimum turns the
// step's NaN for infinity (0 * infinity) into a number, and 0 stays 0.
FASTDW_INLINE Vec reciprocal(Vec v) {
  const __m512 guess = _mm512_rcp14_ps(v.value), one = _mm512_set1_ps(1.0f);
  const __m512 error = _mm512_min_ps(_mm512_fnmadd_ps(v.value, guess, one), one);
  return {_mm512_fmadd_ps(guess, error, guess)};
}

constexpr int kTileRows = 14;  // 14 x 2 accumulators + 2 weights + 1 broadcast = 31 of 32 registers
constexpr int kTileBlocks = 2;
constexpr int kLinearBlocks = 8;

}  // namespace
}  // namespace fastdw
