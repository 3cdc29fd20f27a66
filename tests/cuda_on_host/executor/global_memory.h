// Accesses to global memory: aligned to their size; on demand inside a known buffer, and counted.
#pragma once

#include "tests/cuda_on_host/executor/counters.h"

namespace fastdw::host {

// Called by the kernel's own code for every lane of a request, those that are not inside too, so
// that the others' visits line up. Where it returns to tells the place of the access.
__attribute__((noinline)) void note_global(const void* pointer, uint32_t bytes, bool inside,
                                           Access access, Place place);

}  // namespace fastdw::host
