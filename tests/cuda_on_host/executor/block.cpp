#include "tests/cuda_on_host/executor/block.h"

#include <random>
#include <utility>

#include "tests/cuda_on_host/executor/counters.h"
#include "tests/cuda_on_host/executor/requests.h"
#include "tests/cuda_on_host/executor/shared_memory.h"

namespace fastdw::host {

namespace {

Stacks stacks;
std::mt19937 random_numbers;

// The lane that runs after `last` of those that are ready.
int choose_lane(uint32_t ready, int last) {
  if (thread_order == Order::reverse) {
    const uint32_t below = ready & ((1u << last) - 1);
    return 31 - __builtin_clz(below ? below : ready);
  }
  int first = last + 1;
  if (thread_order == Order::random) first = static_cast<int>(random_numbers() % kWarpLanes);
  const uint32_t above = first >= kWarpLanes ? 0 : ready & (~0u << first);
  return __builtin_ctz(above ? above : ready);
}

void note_failure(const char* what) {
  block.failed = true;
  block.failure = what;
}

// A lane that is gone may have been the last that others waited for.
void leave_warp(Warp& warp, int lane) {
  warp.alive &= ~(1u << lane);
  warp.ready &= ~(1u << lane);
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived != 0 && (meeting.mask & warp.alive & ~meeting.arrived) == 0)
      warp.complete(meeting);
  }
}

void thread_entry() {
  Fiber::arrive_first_time();
  try {
    block.launch.body(block.launch.kernel, block.launch.params);
    if (!current->copies.is_empty())
      fail("the thread ends with asynchronous copies under way that it has not waited for");
    leave_warp(*current->warp, current->lane);
  } catch (const std::exception& error) {
    note_failure(error.what());
  }
  wait_for_others();
  __builtin_trap();
}

std::string lanes_text(uint32_t lanes) {
  std::string text;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int last = lane;
    while (last + 1 < kWarpLanes && lanes >> (last + 1) & 1) ++last;
    if (!text.empty()) text += ", ";
    text += std::to_string(lane);
    if (last > lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return text;
}

std::string place_of(const Warp& warp, uint32_t lanes) {
  return to_text(block.threads[warp.number * kWarpLanes + __builtin_ctz(lanes)].waits_at);
}

// Lanes wait for each other in a warp in which none can go on.
[[noreturn]] void fail_divergent(const Warp& warp) {
  std::string text = "the lanes of warp " + std::to_string(warp.number) + " wait apart:";
  for (const Meeting& meeting : warp.meetings) {
    if (meeting.arrived == 0) continue;
    text += " lanes " + lanes_text(meeting.arrived) + " at " + to_text(meeting.place) + ";";
  }
  if (warp.at_barrier)
    text += " lanes " + lanes_text(warp.at_barrier) + " at the barrier at " +
            place_of(warp, warp.at_barrier) + ";";
  if (~warp.alive) text += " lanes " + lanes_text(~warp.alive) + " have ended;";
  fail(text);
}

void run_warp(Warp& warp) {
  current = warp.lane(choose_lane(warp.ready, thread_order == Order::reverse ? 0 : 31));
  Fiber::change(block.scheduler, current->fiber);
  current = nullptr;
  if (block.failed) throw KernelError(block.failure);
  for (const Meeting& meeting : warp.meetings)
    if (meeting.arrived != 0) fail_divergent(warp);
}

// True while there is a barrier to pass.
bool pass_barrier() {
  uint32_t ended = 0, waiting = 0;
  const Thread* first = nullptr;
  for (int i = 0; i < block.thread_count; ++i) {
    const Thread& thread = block.threads[i];
    if (!(thread.warp->at_barrier >> thread.lane & 1)) {
      ++ended;
      continue;
    }
    ++waiting;
    if (first == nullptr) first = &thread;
    if (first->waits_at.line != thread.waits_at.line)
      fail("the threads of a block meet at different barriers: " + to_text(first->waits_at) +
           " and " + to_text(thread.waits_at));
  }
  if (waiting == 0) return false;
  if (ended != 0)
    fail(std::to_string(ended) +
             " threads of the block ended before a barrier that the others "
             "wait at",
         first->waits_at);
  begin_epoch();
  for (int i = 0; i < block.warp_count; ++i) {
    Warp& warp = block.warps[i];
    warp.ready = warp.alive;
    warp.at_barrier = 0;
    warp.segment = next_segment();
    ++meetings_of_warp[i];
  }
  return true;
}

void order_warps(int (&order)[kMostWarps]) {
  const int count = block.warp_count;
  for (int i = 0; i < count; ++i) order[i] = thread_order == Order::reverse ? count - 1 - i : i;
  if (thread_order != Order::random) return;
  for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random_numbers() % (i + 1)]);
}

void prepare_threads() {
  for (int i = 0; i < block.thread_count; ++i) {
    Thread& thread = block.threads[i];
    thread.copies.clear();
    thread.fiber.prepare(stacks.stack(i), stacks.bytes(i), thread_entry);
  }
  for (int i = 0; i < block.warp_count; ++i) {
    Warp& warp = block.warps[i];
    const int lanes = block.thread_count - i * kWarpLanes;
    warp.alive = warp.ready = lanes >= kWarpLanes ? ~0u : (1u << lanes) - 1;
    warp.at_barrier = 0;
    warp.segment = next_segment();
    for (Meeting& meeting : warp.meetings) meeting.arrived = 0;
  }
}

void run_block() {
  begin_block(block.launch.shared_bytes);
  prepare_threads();
  int order[kMostWarps];
  do {
    order_warps(order);
    for (int i = 0; i < block.warp_count; ++i)
      if (block.warps[order[i]].ready) run_warp(block.warps[order[i]]);
  } while (pass_barrier());
  end_block();
  if (watch.counts) count_block_end();
}

void number_threads(dim3 size) {
  block.thread_count = static_cast<int>(size.x * size.y * size.z);
  block.warp_count = (block.thread_count + kWarpLanes - 1) / kWarpLanes;
  for (int i = 0; i < block.thread_count; ++i) {
    Thread& thread = block.threads[i];
    const unsigned number = i;
    thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
    thread.lane = i % kWarpLanes;
    thread.number = number;
    thread.warp = &block.warps[i / kWarpLanes];
    thread.warp->number = i / kWarpLanes;
  }
}

std::string index_text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

}  // namespace

void wait_for_others() {
  Thread& self = *current;
  const uint32_t ready = block.failed ? 0 : self.warp->ready;
  if (ready == 0) {
    Fiber::change(self.fiber, block.scheduler);
    return;
  }
  current = self.warp->lane(choose_lane(ready, self.lane));
  if (current != &self) Fiber::change(self.fiber, current->fiber);
}

uint64_t last_blocks = ~uint64_t{0};

void execute(const Launch& launch) {
  block.launch = launch;
  block.block_size = launch.block;
  block.grid_size = launch.grid;
  block.failed = false;
  block.scheduler.use_own_stack();
  number_threads(launch.block);
  if (watch.counts) count_launch_begin();
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t offset = thread_order == Order::random ? random_numbers() % blocks : 0;
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t place = (i + offset) % blocks;
    if (thread_order == Order::reverse) place = blocks - 1 - i;
    if (blocks - place > last_blocks) continue;
    block.index = {static_cast<unsigned>(place % launch.grid.x),
                   static_cast<unsigned>(place / launch.grid.x % launch.grid.y),
                   static_cast<unsigned>(place / launch.grid.x / launch.grid.y)};
    run_block();
  }
  if (watch.counts) count_launch_end();
}

void set_order(Order order, uint64_t seed) {
  thread_order = order;
  random_numbers.seed(static_cast<std::mt19937::result_type>(seed));
}

std::string to_text(Place place) {
  return std::string(place.file) + ":" + std::to_string(place.line);
}

void fail(const std::string& what) {
  std::string text = what + " [block " + index_text(block.index);
  if (current != nullptr) text += ", thread " + index_text(current->index);
  throw KernelError(text + "]");
}

void fail(const std::string& what, Place place) { fail(what + ", at " + to_text(place)); }

}  // namespace fastdw::host
