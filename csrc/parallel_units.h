// Splits the units of one kernel call over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "csrc/reusable_buffer.h"
#include "csrc/tensor_checks.h"
#include "kernels/cpu/dispatch.h"

namespace fastdw {

// Below this a second thread costs more (3-5 us to wake it) than it saves.
constexpr int64_t kMultiplyAddsPerThread = int64_t{1} << 18;

inline const KernelTable& kernel_table() {
  const char* error = nullptr;
  const KernelTable* table = active_kernel_table(&error);
  FASTDW_CHECK(table != nullptr, error ? error : "no CPU kernel for this machine");
  return *table;
}

// multiply_adds: of the whole call, for choosing how many threads it is worth.
template <class Params>
void run_in_parallel(const Kernel<Params>& kernel, const Params& params, int64_t multiply_adds) {
  const int64_t units = params.units();
  if (units == 0) return;
  const int64_t floats = kernel.scratch_floats(params);
  const auto run = [&](int64_t begin, int64_t end) {
    kernel.run(params, begin, end, thread_scratch().take(floats).data());
  };
  const int64_t worth = multiply_adds / kMultiplyAddsPerThread;
  if (worth <= 1 || units == 1 || torch::stable::get_num_threads() == 1) return run(0, units);
  const int64_t grain = std::max<int64_t>(1, units / worth);
  torch::stable::parallel_for(0, units, grain, run);
}

}  // namespace fastdw
