// What tests set and ask, by ctypes.
#include <cstdint>
#include <string>

#include "tests/cuda_on_host/executor/block.h"
#include "tests/cuda_on_host/executor/counters.h"
#include "tests/cuda_on_host/executor/runtime.h"
#include "tests/cuda_on_host/executor/shared_memory.h"

#define FASTDW_CONTROL extern "C" __attribute__((visibility("default")))

namespace host = fastdw::host;

// 0: forward, 1: reverse, 2: random; the same for threads, warps, blocks and the nodes of graphs.
FASTDW_CONTROL void fastdw_host_set_order(int order, uint64_t seed) {
  host::set_order(static_cast<host::Order>(order), seed);
}

FASTDW_CONTROL int fastdw_host_set_device(const char* name) {
  return host::choose_device_kind(name);
}

FASTDW_CONTROL void fastdw_host_set_capturing(int capturing) {
  host::streams_are_capturing = capturing != 0;
}

FASTDW_CONTROL void fastdw_host_run_last(uint64_t blocks) { host::last_blocks = blocks; }

FASTDW_CONTROL int64_t fastdw_host_graphs_built() { return host::graphs_built; }
FASTDW_CONTROL int64_t fastdw_host_early_launches() { return host::early_launches; }

FASTDW_CONTROL int64_t fastdw_host_graph_launches() { return host::graph_launches; }

FASTDW_CONTROL void fastdw_host_check_order(int checks) {
  host::shared_memory.checks_order = checks != 0;
}

FASTDW_CONTROL void fastdw_host_watch(int counts, int only_known_buffers) {
  host::watch.counts = counts != 0;
  host::watch.only_known_buffers = only_known_buffers != 0;
}

FASTDW_CONTROL void fastdw_host_know_buffer(const char* name, const void* begin, uint64_t bytes) {
  host::know_buffer(name, begin, bytes);
}

FASTDW_CONTROL void fastdw_host_forget_buffers() { host::forget_buffers(); }

FASTDW_CONTROL void fastdw_host_forget_counts() { host::forget_counts(); }

// JSON; lives until the next call.
FASTDW_CONTROL const char* fastdw_host_counts() {
  static std::string text;
  text = host::counts_as_json();
  return text.c_str();
}

// What kernels see as the address of their shared memory.
FASTDW_CONTROL const void* fastdw_host_shared_memory() { return host::shared_memory.names; }
