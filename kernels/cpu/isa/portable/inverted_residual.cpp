#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/inverted_residual.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<InvertedResidualParams> inverted_residual_kernel;
const Kernel<InvertedResidualParams> inverted_residual_kernel{
    run_inverted_residual, inverted_residual_scratch, describe_inverted_residual};
}  // namespace fastdw::portable
