#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/pointwise_conv.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<PointwiseParams> pointwise_conv_kernel;
const Kernel<PointwiseParams> pointwise_conv_kernel{run_pointwise_conv, pointwise_conv_scratch,
                                                    describe_pointwise_conv};
}  // namespace fastdw::portable
