// Any machine: 4 lanes of the compiler's own vector type (SSE2 on x86-64, NEON on arm64).
#pragma once

#include <cstring>

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct Vec {
  static constexpr int lanes = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef uint32_t Words __attribute__((vector_size(16)));
  Floats value;

  static FASTDW_INLINE Vec load(const float* p) {
    Vec v;
    std::memcpy(&v.value, p, sizeof(v.value));
    return v;
  }
  static FASTDW_INLINE Vec load(const float* p, int64_t count) {
    Vec v = fill(0.0f);
    for (int64_t i = 0; i < count; ++i) v.value[i] = p[i];
    return v;
  }
  static FASTDW_INLINE Vec broadcast(const float* p) { return fill(*p); }
  static FASTDW_INLINE Vec fill(float x) { return {Floats{x, x, x, x}}; }
  FASTDW_INLINE void store(float* p) const { std::memcpy(p, &value, sizeof(value)); }
  FASTDW_INLINE void store(float* p, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) p[i] = value[i];
  }
};

FASTDW_INLINE Vec operator+(Vec a, Vec b) { return {a.value + b.value}; }
FASTDW_INLINE Vec operator*(Vec a, Vec b) { return {a.value * b.value}; }
FASTDW_INLINE Vec operator/(Vec a, Vec b) { return {a.value / b.value}; }
FASTDW_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.value * b.value + c.value}; }
FASTDW_INLINE Vec min(Vec bound, Vec v) { return {bound.value < v.value ? bound.value : v.value}; }
FASTDW_INLINE Vec max(Vec bound, Vec v) { return {bound.value > v.value ? bound.value : v.value}; }
FASTDW_INLINE Vec max_or_nan(Vec a, Vec b) {
  return {(a.value > b.value) | (a.value != a.value) ? a.value : b.value};
}
// 2^n for t = n + kExp2Shift, |n| <= 126.
FASTDW_INLINE Vec exp2_of_shifted(Vec t) {
  Vec::Words bits;
  std::memcpy(&bits, &t.value, sizeof(bits));
  bits = (bits << 23) + (127u << 23);
  std::memcpy(&t.value, &bits, sizeof(bits));
  return t;
}
FASTDW_INLINE Vec times_exp2(Vec v, Vec n) { return times_exp2_in_halves(v, n); }
FASTDW_INLINE Vec reciprocal(Vec v) { return Vec::fill(1.0f) / v; }

constexpr int kTileRows = 2;  // 2 x 4 accumulators + 4 weights + 1 broadcast = 13 of 16 registers
constexpr int kTileBlocks = 1;
constexpr int kLinearBlocks = 2;

}  // namespace
}  // namespace fastdw
