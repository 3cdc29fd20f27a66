#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/linear.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<LinearParams> linear_kernel;
const Kernel<LinearParams> linear_kernel{run_linear, linear_scratch, describe_linear};
}  // namespace fastdw::portable
