// The kernels of one instruction set, as function pointers made from kernel_list.inc.
#pragma once

#include <cstdint>

#include "kernels/cpu/notes.h"
#include "kernels/params.h"

namespace fastdw {

template <class Params>
struct Kernel {
  // Computes the units [begin, end) of the call. scratch: scratch_floats(params) floats, any
  // content, any alignment, not shared with another running call.
  void (*run)(const Params& params, int64_t begin, int64_t end, float* scratch);
  int64_t (*scratch_floats)(const Params& params);
  // Notes how run() would cut the units [begin, end); reads no memory that params points to.
  void (*describe)(const Params& params, int64_t begin, int64_t end, const Notes& notes);
};

struct KernelTable {
  const char* isa;
#define FASTDW_KERNEL(name, Params) Kernel<Params> name;
#include "kernels/cpu/kernel_list.inc"
#undef FASTDW_KERNEL
};

}  // namespace fastdw
