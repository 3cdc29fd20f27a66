#include "tests/cuda_on_host/executor/matrix.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "tests/cuda_on_host/executor/counters.h"
#include "tests/cuda_on_host/executor/shared_memory.h"
#include "tests/cuda_on_host/executor/warp.h"

namespace fastdw::host {

namespace {

constexpr int kRows = 16, kColumns = 8;

void require_all(uint32_t present, Place place) {
  if (present != ~0u) fail("an instruction of the whole warp is missed by some lanes", place);
}

struct LoadArgument {
  const void* row;
  uint32_t parts[4];
};

void load_action(void* const (&arguments)[kWarpLanes], uint32_t present, Place place) {
  require_all(present, place);
  const unsigned char* rows[kWarpLanes];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const void* name = static_cast<LoadArgument*>(arguments[lane])->row;
    rows[lane] = read_matrix_row(*current->warp->lane(lane), name, place);
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    auto* own = static_cast<LoadArgument*>(arguments[lane]);
    for (int matrix = 0; matrix < 4; ++matrix)
      std::memcpy(&own->parts[matrix], rows[8 * matrix + lane / 4] + lane % 4 * 4, 4);
  }
}

struct MultiplyArgument {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <Factors kFactors>
struct Element;
template <>
struct Element<Factors::fp16> {
  static float first(uint32_t bits) { return __half2float({static_cast<unsigned short>(bits)}); }
  static float second(uint32_t bits) { return first(bits >> 16); }
};
template <>
struct Element<Factors::bf16> {
  static float first(uint32_t bits) {
    return __bfloat162float({static_cast<unsigned short>(bits)});
  }
  static float second(uint32_t bits) { return first(bits >> 16); }
};

// Products of one step: sums[row][column] += a[row][k] b[k][column].
template <int kDepth>
void add_products(float (&sums)[kRows][kColumns], const float (&a)[kRows][kDepth],
                  const float (&b)[kDepth][kColumns]) {
  using Row = float __attribute__((vector_size(kColumns * sizeof(float))));
  for (int row = 0; row < kRows; ++row) {
    Row sum = {};
    for (int k = 0; k < kDepth; ++k) {
      Row factors;
      std::memcpy(&factors, b[k], sizeof(Row));
      sum += a[row][k] * factors;
    }
    Row before;
    std::memcpy(&before, sums[row], sizeof(Row));
    sum += before;
    std::memcpy(sums[row], &sum, sizeof(Row));
  }
}

template <Factors kFactors>
void gather(float (&a)[kRows][16], float (&b)[16][kColumns], void* const (&arguments)[kWarpLanes]) {
  using E = Element<kFactors>;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto* own = static_cast<const MultiplyArgument*>(arguments[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      float* to = &a[group + i % 2 * 8][pair + i / 2 * 8];
      to[0] = E::first(own->a[i]);
      to[1] = E::second(own->a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[pair + i * 8][group] = E::first(own->b[i]);
      b[pair + i * 8 + 1][group] = E::second(own->b[i]);
    }
  }
}

float tf32_value(uint32_t bits, Place place) {
  if (bits & 0x1fffu && (bits & 0x7f800000u) != 0x7f800000u)
    fail("a factor of a tf32 product has not been rounded to tf32", place);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void gather_tf32(float (&a)[kRows][8], float (&b)[8][kColumns],
                 void* const (&arguments)[kWarpLanes], Place place) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto* own = static_cast<const MultiplyArgument*>(arguments[lane]);
    const int group = lane / 4, k = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][k + i / 2 * 4] = tf32_value(own->a[i], place);
    for (int i = 0; i < 2; ++i) b[k + i * 4][group] = tf32_value(own->b[i], place);
  }
}

template <Factors kFactors>
void multiply_action(void* const (&arguments)[kWarpLanes], uint32_t present, Place place) {
  require_all(present, place);
  constexpr int kDepth = kFactors == Factors::tf32 ? 8 : 16;
  float a[kRows][kDepth], b[kDepth][kColumns], sums[kRows][kColumns];
  if constexpr (kFactors == Factors::tf32) {
    gather_tf32(a, b, arguments, place);
  } else {
    gather<kFactors>(a, b, arguments);
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const float* d = static_cast<const MultiplyArgument*>(arguments[lane])->d;
    std::memcpy(&sums[lane / 4][lane % 4 * 2], d, 8);
    std::memcpy(&sums[lane / 4 + 8][lane % 4 * 2], d + 2, 8);
  }
  add_products(sums, a, b);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    float* d = static_cast<MultiplyArgument*>(arguments[lane])->d;
    std::memcpy(d, &sums[lane / 4][lane % 4 * 2], 8);
    std::memcpy(d + 2, &sums[lane / 4 + 8][lane % 4 * 2], 8);
  }
  count_multiply_adds(kRows * kColumns * kDepth);
}

}  // namespace

void load_matrices(uint32_t (&parts)[4], const void* row, Place place) {
  LoadArgument argument{row, {}};
  if (watch.counts)
    watch_shared(__builtin_return_address(0), shared_offset(row, kRowBytes, place), kRowBytes, true,
                 Access::matrix);
  meet_whole_warp(load_action, &argument, place);
  std::memcpy(parts, argument.parts, sizeof(parts));
}

void multiply_matrices(Factors factors, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1, Place place) {
  MultiplyArgument argument{d, a, {b0, b1}};
  const Meeting::Action action = factors == Factors::fp16   ? multiply_action<Factors::fp16>
                                 : factors == Factors::bf16 ? multiply_action<Factors::bf16>
                                                            : multiply_action<Factors::tf32>;
  meet_whole_warp(action, &argument, place);
}

}  // namespace fastdw::host
