#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/global_pool.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<GlobalPoolParams> global_pool_kernel;
const Kernel<GlobalPoolParams> global_pool_kernel{run_global_pool, global_pool_scratch,
                                                  describe_global_pool};
}  // namespace fastdw::portable
