#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/depthwise_conv.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<DepthwiseParams> depthwise_conv_kernel;
const Kernel<DepthwiseParams> depthwise_conv_kernel{run_depthwise_conv, depthwise_conv_scratch,
                                                    describe_depthwise_conv};
}  // namespace fastdw::portable
