// What happens to a sum before it is stored: a clamp (none, ReLU and ReLU6 are the same code), or a
// smooth activation (Hardswish, SiLU). The clamp is applied in registers. A smooth activation, or
// an activation followed by a residual, is applied to the tile just stored, while it is in the L1
// cache.
#pragma once

#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

struct Clamp {
  float low, high;
};

FASTDW_INLINE bool is_clamp(Activation activation) {
  return activation == Activation::none || activation == Activation::relu ||
         activation == Activation::relu6;
}

FASTDW_INLINE Clamp clamp_of(Activation activation) {
  constexpr float infinity = __builtin_inff();
  switch (activation) {
    case Activation::relu: return {0.0f, infinity};
    case Activation::relu6: return {0.0f, 6.0f};
    default: return {-infinity, infinity};
  }
}

FASTDW_INLINE Vec clamp(Vec v, Clamp bounds) {
  return min(Vec::fill(bounds.high), max(Vec::fill(bounds.low), v));
}

// The bounds in registers: for all the compiler knows, a store to a float might change the bounds
// in memory, and it would read them again after every store.
struct VecClamp {
  Vec low, high;

  FASTDW_INLINE explicit VecClamp(Clamp bounds)
      : low(Vec::fill(bounds.low)), high(Vec::fill(bounds.high)) {}
  FASTDW_INLINE Vec operator()(Vec v) const { return min(high, max(low, v)); }
};

// e^x: 2^n * e^r with n whole and |r| <= ln(2) / 2, e^r by its Taylor sum to degree 7 (remainder
// below 2^-27). Overflow gives infinity and underflow 0.
FASTDW_INLINE Vec exponential(Vec x) {
  constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // their sum is ln(2)
  const Vec shift = Vec::fill(kExp2Shift), unshift = Vec::fill(-kExp2Shift);
  x = clamp(x, {-104.0f, 104.0f});
  const Vec n = fma(x, Vec::fill(1.44269504f), shift) + unshift;
  Vec r = fma(n, Vec::fill(-ln2_high), x);
  r = fma(n, Vec::fill(-ln2_low), r);
  Vec sum = Vec::fill(1.0f / 5040);
  sum = fma(sum, r, Vec::fill(1.0f / 720));
  sum = fma(sum, r, Vec::fill(1.0f / 120));
  sum = fma(sum, r, Vec::fill(1.0f / 24));
  sum = fma(sum, r, Vec::fill(1.0f / 6));
  sum = fma(sum, r, Vec::fill(1.0f / 2));
  sum = fma(sum, r, Vec::fill(1.0f));
  sum = fma(sum, r, Vec::fill(1.0f));
  return times_exp2(sum, n);
}

template <Activation activation>
FASTDW_INLINE Vec activate(Vec v) {
  if constexpr (activation == Activation::hardswish) {
    return v * clamp(v + Vec::fill(3.0f), {0.0f, 6.0f}) * Vec::fill(1.0f / 6);
  } else if constexpr (activation == Activation::silu) {
    return v * reciprocal(Vec::fill(1.0f) + exponential(v * Vec::fill(-1.0f)));
  } else if constexpr (activation == Activation::hardsigmoid) {
    return clamp(v + Vec::fill(3.0f), {0.0f, 6.0f}) * Vec::fill(1.0f / 6);
  } else if constexpr (activation == Activation::sigmoid) {
    return reciprocal(Vec::fill(1.0f) + exponential(v * Vec::fill(-1.0f)));
  } else {
    return clamp(v, clamp_of(activation));
  }
}

// y = activation(y) + residual over pixels of `channels` floats.
template <Activation activation>
void finish_pixels(float* y, int64_t y_pixel, const float* residual, int64_t residual_pixel,
                   int64_t pixels, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    float* out = y + pixel * y_pixel;
    for (int64_t c = 0; c < channels; c += Vec::lanes) {
      const int64_t count = smaller(Vec::lanes, channels - c);
      const bool whole = count == Vec::lanes;
      Vec v = activate<activation>(whole ? Vec::load(out + c) : Vec::load(out + c, count));
      if (residual != nullptr) {
        const float* add = residual + pixel * residual_pixel + c;
        v = v + (whole ? Vec::load(add) : Vec::load(add, count));
      }
      whole ? v.store(out + c) : v.store(out + c, count);
    }
  }
}

void finish(Activation activation, float* y, int64_t y_pixel, const float* residual,
            int64_t residual_pixel, int64_t pixels, int64_t channels) {
  const auto run = [&](auto finish_pixels_of) {
    finish_pixels_of(y, y_pixel, residual, residual_pixel, pixels, channels);
  };
  switch (activation) {
    case Activation::none: return run(finish_pixels<Activation::none>);
    case Activation::relu: return run(finish_pixels<Activation::relu>);
    case Activation::relu6: return run(finish_pixels<Activation::relu6>);
    case Activation::hardswish: return run(finish_pixels<Activation::hardswish>);
    case Activation::silu: return run(finish_pixels<Activation::silu>);
    case Activation::hardsigmoid: return run(finish_pixels<Activation::hardsigmoid>);
    case Activation::sigmoid: return run(finish_pixels<Activation::sigmoid>);
  }
}

}  // namespace
}  // namespace fastdw
