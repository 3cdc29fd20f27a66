#include "kernels/cpu/simd/avx2.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/max_pool.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx2 {
extern const Kernel<MaxPoolParams> max_pool_kernel;
const Kernel<MaxPoolParams> max_pool_kernel{run_max_pool, max_pool_scratch, describe_max_pool};
}  // namespace fastdw::avx2
