// A matrix in shared memory whose rows are read 16 bytes (a chunk) at a time, by ldmatrix (8 rows,
// one chunk each) or by a warp that walks along rows. Chunks of a row change places by an XOR with
// the row, so that 8 rows' chunks of one column lie in different banks:
//
//   chunks a row    8: chunk ^ (row % 8)    4: chunk ^ (row / 2 % 4)    2: chunk ^ (row / 4 % 2)
//
// and for other counts by their largest such factor; an odd count needs no change.
#pragma once

#include "kernels/cuda/dtype.cuh"

namespace fastdw::cuda {

template <class T, int kColumns>
struct SharedTile {
  static constexpr int kLanes = kPackLanes<T>;  // elements a chunk
  static constexpr int kChunks = kColumns / kLanes;
  static_assert(kColumns % kLanes == 0, "a row is a whole number of 16-byte chunks");
  static constexpr int kPower = kChunks & -kChunks;  // largest power of two in kChunks
  static constexpr int kGroup = kPower < 8 ? kPower : 8;

  static constexpr int bytes(int rows) { return rows * kColumns * static_cast<int>(sizeof(T)); }
  // Rows a multiple of 8 apart are so far apart, for each of them.
  __device__ __forceinline__ static constexpr int row_elements() { return kColumns; }

  T* data;

  __device__ __forceinline__ T* chunk(int row, int index) const {
    const unsigned place = static_cast<unsigned>(row) / (8 / kGroup) % kGroup;
    return data + row * kColumns + (index ^ place) * kLanes;
  }

  // One element: for tails and for the fragments of mma (a pair within a chunk stays together).
  __device__ __forceinline__ T* element(int row, int column) const {
    return chunk(row, column / kLanes) + column % kLanes;
  }

  __device__ __forceinline__ WidePack<T> load(int row, int index) const {
    return load_shared(reinterpret_cast<const WidePack<T>*>(chunk(row, index)));
  }

  __device__ __forceinline__ void store(int row, int index, const WidePack<T>& value) const {
    store_shared(reinterpret_cast<WidePack<T>*>(chunk(row, index)), value);
  }
};

// Sums in fp32 on their way from a warp's fragments (8 bytes a lane, 4 lanes a row) to whole rows
// (4, 16 or 32 bytes a lane). Pairs of chunks change places as above, by 4 rows: no bank conflicts
// when written. The two of a pair change places every 128 bytes: none when read in pairs.
template <int kColumns>
struct SumTile {
  static_assert(kColumns % 8 == 0, "a row is a whole number of fragments");
  static constexpr int kChunks = kColumns / 4;
  static constexpr int kPairs = kColumns / 8;
  static constexpr int kPower = kPairs & -kPairs;
  static constexpr int kGroup = kPower < 4 ? kPower : 4;

  static constexpr int bytes(int rows) { return rows * kColumns * static_cast<int>(sizeof(float)); }

  float* data;

  __device__ __forceinline__ float* element(int row, int column) const {
    const unsigned chunk = static_cast<unsigned>(column) / 4;
    const unsigned place = static_cast<unsigned>(row) / (4 / kGroup) % kGroup;
    const unsigned pair = chunk / 2 ^ place;
    const unsigned half = (chunk ^ (row * kChunks + chunk) / 8) % 2;
    return data + row * kColumns + pair * 8 + half * 4 + column % 4;
  }
};

}  // namespace fastdw::cuda
