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

// Results on their way from a warp's fragments (2 elements a lane, 4 lanes a row) to whole rows (16
// bytes a lane). The pitch keeps 8 rows in different banks: no conflicts when they are written, nor
// when the rows that `reading_row` brings together are read.
template <class E, int kColumns>
struct ResultTile {
  static_assert(kColumns % 16 == 0, "a pitch that keeps rows in different banks");
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kPitchBanks = kPitch * static_cast<int>(sizeof(E)) / 4;
  static constexpr int kAcross = kColumns * static_cast<int>(sizeof(E)) / 16;  // lanes a row
  // Lanes that read at once have kRowsAtOnce rows, kRowStep apart.
  static constexpr int kRowsAtOnce = kAcross >= 8 ? 1 : 8 / kAcross;
  static constexpr int kRowStep = kPitchBanks * 2 % 32 == 16 || kRowsAtOnce == 4 ? 2 : 4;

  static constexpr int bytes(int rows) { return rows * kPitch * static_cast<int>(sizeof(E)); }

  E* data;

  __device__ __forceinline__ E* element(int row, int column) const {
    return data + row * kPitch + column;
  }

  // A permutation of every 8 rows.
  __device__ __forceinline__ static constexpr int reading_row(int index) {
    if (kRowsAtOnce == 1) return index;
    const int inside = index % 8, turn = inside % kRowsAtOnce, first = inside / kRowsAtOnce;
    return index - inside + turn * kRowStep + first / kRowStep * kRowStep * kRowsAtOnce +
           first % kRowStep;
  }
};

}  // namespace fastdw::cuda
