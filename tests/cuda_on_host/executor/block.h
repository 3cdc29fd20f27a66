// One thread block after the other, one thread of it at a time. A thread runs until it waits for
// others; a warp runs until none of its threads can go on; then comes the next warp.
#pragma once

#include <cstdint>

#include "tests/cuda_on_host/executor/async_copies.h"
#include "tests/cuda_on_host/executor/error.h"
#include "tests/cuda_on_host/executor/fiber.h"
#include "tests/cuda_on_host/include/vector_types.h"

namespace fastdw::host {

constexpr int kWarpLanes = 32;
constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / kWarpLanes;

struct Warp;

struct Thread {
  uint3 index;  // threadIdx
  int lane;
  Warp* warp;
  uint32_t number;  // within the block
  Place waits_at;
  AsyncCopies copies;
  Fiber fiber;
};

enum class Order { forward, reverse, random };

// What the lanes of a warp do together: the last of them to come does it for all.
struct Meeting {
  using Action = void (*)(void* const (&arguments)[kWarpLanes], uint32_t present, Place place);
  Action action;
  uint32_t mask, arrived;
  Place place;
  void* arguments[kWarpLanes];
};

struct Warp {
  static constexpr int kMostMeetings = 8;  // diverged parts of a warp may meet apart
  int number;
  uint32_t alive, ready, at_barrier;  // by lane
  uint32_t segment;                   // a new one after each barrier of the block or the warp
  Meeting meetings[kMostMeetings];

  Thread* lane(int index);
  void complete(Meeting& meeting);
};

using Body = void (*)(const void* kernel, const void* params);

struct Launch {
  Body body;
  const void* kernel;
  const void* params;
  dim3 grid, block;
  size_t shared_bytes;
};

struct Block {
  uint3 index;  // blockIdx
  dim3 block_size, grid_size;
  Launch launch;
  int thread_count = 0, warp_count = 0;
  Thread threads[kMostThreads];
  Warp warps[kMostWarps];
  Fiber scheduler;
  bool failed = false;
  std::string failure;
};

inline Block block;
inline Thread* current = nullptr;
inline Order thread_order = Order::forward;

inline Thread* Warp::lane(int index) { return &block.threads[number * kWarpLanes + index]; }

// Called by a thread that cannot go on: others run, and it returns when somebody made it ready.
void wait_for_others();

// How many thread blocks of a grid are executed, the last ones: others write nothing.
extern uint64_t last_blocks;

// Executes the grid; throws KernelError.
void execute(const Launch& launch);

void set_order(Order order, uint64_t seed);

}  // namespace fastdw::host
