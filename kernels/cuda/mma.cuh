// A warp's matrix product from two tiles in shared memory: sums[m][n] += A[16 m ...] B[8 n ...]^T.
// A holds pixels by k, B output channels by k (torch's weight as it is), both k along the rows.
// Element i of sums[m][n] is row 16 m + lane / 4 + 8 (i / 2), column 8 n + 2 (lane % 4) + i % 2,
// whatever the arithmetic: fp16 and bf16 by tensor cores, fp32 by FMA, or by tensor cores in tf32.
#pragma once

#include <type_traits>

#include "kernels/cuda/shared_tile.cuh"

namespace fastdw::cuda {

struct Exact {};  // products in the full precision of the elements
struct Tf32 {};   // fp32 elements rounded to tf32

constexpr int kFragmentRows = 16;
constexpr int kFragmentColumns = 8;

// k of one step: 16 elements of 2 bytes, 8 of 4: two chunks.
template <class T>
constexpr int kStepDepth = 2 * kPackLanes<T>;

namespace fragment {

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int row(int i, int of_lane) { return of_lane / 4 + i / 2 * 8; }
__device__ __forceinline__ int row(int i) { return row(i, lane()); }
__device__ __forceinline__ int column(int i, int of_lane) { return of_lane % 4 * 2 + i % 2; }
__device__ __forceinline__ int column(int i) { return column(i, lane()); }

// Where this lane's row begins for ldmatrix. A: 16 rows by two chunks; matrices in the order that
// the mma instruction wants.
template <class Tile>
__device__ __forceinline__ auto* a_rows(const Tile& tile, int row, int chunk, int of_lane) {
  return tile.chunk(row + of_lane % 16, chunk + of_lane / 16);
}

// B: twice 8 rows by two chunks; parts {0, 1} belong to the first 8, {2, 3} to the second.
template <class Tile>
__device__ __forceinline__ auto* b_rows(const Tile& tile, int row, int chunk, int of_lane) {
  return tile.chunk(row + of_lane % 8 + of_lane / 16 * 8, chunk + of_lane / 8 % 2);
}

// Where registers are scarce, it is not kept for the next product.
template <int kUnroll>
__device__ __forceinline__ int lane_for() {
  return kUnroll == 1 ? thread_index() % 32 : lane();
}

template <class T>
__device__ __forceinline__ void multiply_step(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  if constexpr (sizeof(T) == 2) {
    mma_16x8x16<T>(sums, a, b0, b1);
  } else {
    mma_16x8x8_tf32(sums, a, b0, b1);
  }
}

template <class T>
__device__ __forceinline__ void round_parts(uint32_t (&parts)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[i] = round_to_tf32(parts[i]);
  }
}

}  // namespace fragment

// By tensor cores; kN even. a_row and b_row: first rows, multiples of 8; steps of kStepDepth<T>
// from a_chunk, b_chunk.
template <class Math, class T, int kUnroll, int kM, int kN, class TileA, class TileB>
__device__ __forceinline__ void multiply_tensor(float (&sums)[kM][kN][4], const TileA& tile_a,
                                                int a_row, int a_chunk, const TileB& tile_b,
                                                int b_row, int b_chunk, int steps) {
  static_assert(kN % 2 == 0, "output channels are taken in pairs of 8");
  const int lane = fragment::lane_for<kUnroll>();
#pragma unroll kUnroll
  for (int step = 0; step < steps; ++step) {
    const T* a_rows = fragment::a_rows(tile_a, a_row, a_chunk + 2 * step, lane);
    const T* b_rows = fragment::b_rows(tile_b, b_row, b_chunk + 2 * step, lane);
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      load_matrices(a[m], a_rows + m * kFragmentRows * tile_a.row_elements());
      fragment::round_parts<T>(a[m]);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      load_matrices(b, b_rows + n * kFragmentColumns * tile_b.row_elements());
      fragment::round_parts<T>(b);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        fragment::multiply_step<T>(sums[m][n], a[m], b[0], b[1]);
        fragment::multiply_step<T>(sums[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// By FMA, for fp32 that stays fp32: each lane holds 2 kM rows and 2 kN columns, 2 k at a time (4
// would take the registers of as many sums). No bank conflicts: 16 lanes, which are one wavefront,
// want 4 neighbouring rows of A, or 4 rows 2 apart of B.
template <int kUnroll, int kM, int kN, class TileA, class TileB>
__device__ __forceinline__ void multiply_exact(float (&sums)[kM][kN][4], const TileA& tile_a,
                                               int a_row, int a_chunk, const TileB& tile_b,
                                               int b_row, int b_chunk, int chunks) {
  using Pair = Pack<float, 2>;
  const int lane = fragment::lane_for<kUnroll>();
  const int row = a_row + fragment::row(0, lane), column = b_row + fragment::column(0, lane);
#pragma unroll kUnroll
  for (int step = 0; step < 2 * chunks; ++step) {
    const int half = step % 2 * 2;
    const float* a_rows = tile_a.chunk(row, a_chunk + step / 2) + half;
    const float* b_rows[2] = {tile_b.chunk(column, b_chunk + step / 2) + half,
                              tile_b.chunk(column + 1, b_chunk + step / 2) + half};
    Pair a[2 * kM];
#pragma unroll
    for (int m = 0; m < 2 * kM; ++m)
      a[m] = load_shared(reinterpret_cast<const Pair*>(a_rows + m * 8 * tile_a.row_elements()));
#pragma unroll
    for (int n = 0; n < 2 * kN; ++n) {
      const float* from = b_rows[n % 2] + n / 2 * kFragmentColumns * tile_b.row_elements();
      const Pair b = load_shared(reinterpret_cast<const Pair*>(from));
#pragma unroll
      for (int m = 0; m < 2 * kM; ++m) {
        float& sum = sums[m / 2][n / 2][m % 2 * 2 + n % 2];
        sum = fmaf(a[m].lane[0], b.lane[0], sum);
        sum = fmaf(a[m].lane[1], b.lane[1], sum);
      }
    }
  }
}

// kUnroll: steps in one round of the loop; 1 where registers are scarce.
template <class Math, class T, int kUnroll = 2, int kM, int kN, class TileA, class TileB>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN][4], const TileA& a, int a_row,
                                         int a_chunk, const TileB& b, int b_row, int b_chunk,
                                         int steps) {
  if constexpr (sizeof(T) == 4 && !std::is_same_v<Math, Tf32>) {
    multiply_exact<kUnroll>(sums, a, a_row, a_chunk, b, b_row, b_chunk, 2 * steps);
  } else {
    multiply_tensor<Math, T, kUnroll>(sums, a, a_row, a_chunk, b, b_row, b_chunk, steps);
  }
}

}  // namespace fastdw::cuda
