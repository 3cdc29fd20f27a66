// What kernels move and multiply, counted where asked for.
//
// A warp's request is what its lanes do at their n-th visit, since they last met, to one place of
// the machine code: the threads run one after the other, so it is put together from their visits.
//   - distinct sectors: the 32-byte sectors of global memory that a launch touches: what DRAM must
//     move;
//   - request sectors: the distinct sectors of each request, summed: what the caches must deliver;
//   - wavefronts: turns that shared memory needs for a request. Each of 32 banks gives one 4-byte
//     word a turn; 8-byte accesses go by half warps, 16-byte ones and ldmatrix by quarters.
//     Conflicts are the turns beyond those that the number of words asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/cuda_on_host/executor/error.h"

namespace fastdw::host {

struct Watch {
  bool counts = false;
  bool only_known_buffers = false;
  int64_t multiply_adds = 0;
};

inline Watch watch;

enum class Access { load, store, copy, matrix };

// A lane's visit; code: the place in the machine code.
void watch_global(const void* code, const void* pointer, uint32_t bytes, bool inside,
                  Access access);
void watch_shared(const void* code, size_t offset, uint32_t bytes, bool inside, Access access);
inline void count_multiply_adds(int64_t count) { watch.multiply_adds += count; }

// Buffers that counts are given by; several may share a name.
void know_buffer(const std::string& name, const void* begin, size_t bytes);
void forget_buffers();
bool is_in_known_buffer(const void* pointer, uint32_t bytes);

void forget_counts();
void count_launch_begin();
void count_block_end();
void count_launch_end();
std::string counts_as_json();

}  // namespace fastdw::host
