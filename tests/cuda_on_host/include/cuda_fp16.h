// __half and its conversions, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

struct alignas(2) __half {
  unsigned short bits;
};

#ifdef __F16C__
inline float __half2float(__half value) { return _cvtsh_ss(value.bits); }
inline __half __float2half_rn(float value) { return {_cvtss_sh(value, 0)}; }
#else
inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  float magnitude;
  if (rest < 0x7c00u) {  // shifted into place, the exponent is 112 too small: 2^112 mends it
    const uint32_t shifted = rest << 13;
    std::memcpy(&magnitude, &shifted, 4);
    magnitude *= 0x1p112f;
  } else {
    const uint32_t shifted = 0x7f800000u | (rest & 0x3ffu) << 13;
    std::memcpy(&magnitude, &shifted, 4);
  }
  uint32_t result;
  std::memcpy(&result, &magnitude, 4);
  result |= sign;
  std::memcpy(&magnitude, &result, 4);
  return magnitude;
}

inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t result;
  if (bits > 0x7f800000u) {
    result = 0x7fffu;
  } else if (bits >= 0x477ff000u) {  // 65520 and more
    result = 0x7c00u;
  } else if (bits < 0x38800000u) {  // less than 2^-14: adding 0.5 leaves units of 2^-24 below
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&result, &magnitude, 4);
    result -= 0x3f000000u;
  } else {
    result = (bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13;
  }
  return {static_cast<unsigned short>(sign | result)};
}
#endif
