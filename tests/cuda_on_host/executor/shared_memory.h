// A block's dynamic shared memory. What a kernel holds are names: addresses at which nothing may be
// touched, so that an access which does not come through here is seen at once. Every access is
// checked: inside the block's memory, aligned, written before it is read, no copy under way, and
// ordered by a barrier after the accesses of other threads.
//
// Order: time is cut into segments, a new one for a warp at each of its __syncwarp and at each
// barrier of the block. The latest writer and two readers of each 2 bytes are remembered as stamps
// (segment, thread). Another thread's access came before if its segment is over: for the same warp,
// if it is not the current one; for other warps, if it was before the latest barrier.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/cuda_on_host/executor/block.h"

namespace fastdw::host {

constexpr size_t kMostSharedBytes = 227 * 1024;
constexpr size_t kSharedUnit = 2;
constexpr size_t kMostUnits = kMostSharedBytes / kSharedUnit;

// Stamps: segment << kSegmentShift | kSeveral | thread.
constexpr int kSegmentShift = 11;
constexpr uint32_t kSeveral = 1u << 10;   // lanes of the warp, of which this is one
constexpr uint32_t kUnderWay = 1u << 31;  // of a writer: the copy has not been waited for
constexpr uint32_t kWarpBits = 0x3e0u;    // the warp's number in a stamp
constexpr uint32_t kMostSegments = 1u << 20;

struct SharedMemory {
  unsigned char* names = nullptr;  // what kernels see
  unsigned char* bytes = nullptr;  // where it is
  size_t size = 0;
  uint32_t segments = 0;        // given out so far
  uint32_t first_of_block = 0;  // stamps before it: another block's
  uint32_t first_of_epoch = 0;  // stamps before it: before the latest barrier
  bool checks_order = true;
  bool is_dirty = false;  // a block was left before its end
  uint32_t writers[kMostUnits];
  uint32_t readers[2][kMostUnits];  // the latest, and the latest of another warp than that
};

inline SharedMemory shared_memory;

uint32_t next_segment();
void begin_epoch();
void begin_block(size_t shared_bytes);
void end_block();

// Each checks and counts an access and returns where the memory is. They are called by the kernel's
// own code: where they return to tells the place of the access.
template <size_t kBytes>
__attribute__((noinline)) const unsigned char* read_shared(const void* name, Place place);

// Not inside: this lane stores nothing, it only takes part; null.
template <size_t kBytes>
__attribute__((noinline)) unsigned char* write_shared(void* name, bool inside, Place place);

// A row of ldmatrix, named by a lane, for all lanes of its warp.
const unsigned char* read_matrix_row(const Thread& lane, const void* name, Place place);
constexpr size_t kRowBytes = 16;

// Offset of an access that lies inside and is aligned to its size.
size_t shared_offset(const void* name, size_t bytes, Place place);

// global null: zeros.
__attribute__((noinline)) void start_copy(void* name, const void* global, Place place);
void wait_for_copies(size_t pending);

}  // namespace fastdw::host
