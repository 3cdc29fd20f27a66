#include "kernels/cpu/simd/avx512.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/peak.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx512 {
extern const Kernel<FmaChainsParams> fma_chains_kernel;
const Kernel<FmaChainsParams> fma_chains_kernel{run_fma_chains, fma_chains_scratch,
                                                describe_fma_chains};
extern const Kernel<ReadPassesParams> read_passes_kernel;
const Kernel<ReadPassesParams> read_passes_kernel{run_read_passes, read_passes_scratch,
                                                  describe_read_passes};
}  // namespace fastdw::avx512
