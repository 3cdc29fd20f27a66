// Division by a number that the host knows, as a product.
#pragma once

#include <cstdint>

namespace fastdw::cuda {

// n / by, exact while n * by <= 2^32.
struct Divisor {
  uint32_t by, factor;

  Divisor() = default;
  explicit Divisor(int64_t divisor)
      : by(static_cast<uint32_t>(divisor)),
        factor(static_cast<uint32_t>(((int64_t{1} << 32) + divisor - 1) / divisor)) {}

  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return by == 1 ? n : static_cast<uint32_t>((uint64_t{n} * factor) >> 32);
  }
};

}  // namespace fastdw::cuda
