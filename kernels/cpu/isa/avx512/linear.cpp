#include "kernels/cpu/simd/avx512.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/linear.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx512 {
extern const Kernel<LinearParams> linear_kernel;
const Kernel<LinearParams> linear_kernel{run_linear, linear_scratch, describe_linear};
}  // namespace fastdw::avx512
