#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/stem_block.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<StemBlockParams> stem_block_kernel;
const Kernel<StemBlockParams> stem_block_kernel{run_stem_block, stem_block_scratch,
                                                describe_stem_block};
}  // namespace fastdw::portable
