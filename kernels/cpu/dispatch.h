// Which instruction set runs: the best one that this CPU has, or the one that FASTDW_CPU_ISA names.
#pragma once

#include "kernels/cpu/kernel_table.h"

namespace fastdw {

constexpr const char* kCpuIsaNames[] = {"avx512", "avx2", "portable"};  // best first

bool cpu_isa_is_supported(const char* isa);           // false for an unknown name
const KernelTable* kernel_table_of(const char* isa);  // null where not supported

// The table in use. The environment variable is read at the first call; an unknown or unsupported
// name there leaves null and *error says why.
const KernelTable* active_kernel_table(const char** error);
const char* active_cpu_isa();
// Switches the whole process (tests, `fastdw verify`); false where not supported.
bool set_cpu_isa(const char* isa);

}  // namespace fastdw
