// What every vector header gives: `struct Vec`, `lanes` floats, in an anonymous namespace so that
// no two instruction sets can share a symbol. A kernel sees this interface only:
//   Vec::lanes                           floats in one vector; divides kChannelBlock
//   Vec::load(p), load(p, n)             unaligned; the second reads n < lanes floats, the rest 0
//   v.store(p), v.store(p, n)            unaligned; the second writes n < lanes floats
//   Vec::broadcast(p)                    *p in every lane
//   Vec::fill(value)                     value in every lane
//   fma(a, b, c)                         a * b + c (fused where the machine has it)
//   a + b, a * b, a / b
//   min(bound, v), max(bound, v)         v where v is NaN, as torch's clamp has it
//   max_or_nan(a, b)                     NaN where either is
//   times_exp2(v, n)                     v * 2^n for whole n, |n| <= 160, v about 1
//   reciprocal(v)                        1 / v for v >= 1, infinity and NaN included
// kTileRows x kTileBlocks: the register tile of the matrix product, pixels x blocks of 16 channels.
#pragma once

#include "kernels/params.h"

#define FASTDW_INLINE inline __attribute__((always_inline))
#define FASTDW_UNROLL _Pragma("GCC unroll 64")
#define FASTDW_NO_UNROLL _Pragma("GCC unroll 1")

namespace fastdw {
namespace {

constexpr float kExp2Shift = 12582912.0f;  // 1.5 * 2^23: the low bits of a sum are its units

// v * 2^n where there is no instruction for it: in two halves, so that neither leaves the range of
// exponents, and overflow gives infinity and underflow 0.
template <class Vector>
FASTDW_INLINE Vector times_exp2_in_halves(Vector v, Vector n) {
  const Vector shift = Vector::fill(kExp2Shift);
  const Vector shifted = fma(n, Vector::fill(0.5f), shift);
  const Vector half = shifted + Vector::fill(-kExp2Shift);
  const Vector rest = fma(half, Vector::fill(-1.0f), n);
  return v * exp2_of_shifted(shifted) * exp2_of_shifted(rest + shift);
}

// Asks for the cache line at p, into the L2 cache; any address may be asked for.
FASTDW_INLINE void prefetch_to_l2(const char* p) { __builtin_prefetch(p, 0, 2); }

FASTDW_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTDW_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTDW_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace fastdw
