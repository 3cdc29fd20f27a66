#include "kernels/cpu/simd/avx512.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/depthwise_conv.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx512 {
extern const Kernel<DepthwiseParams> depthwise_conv_kernel;
const Kernel<DepthwiseParams> depthwise_conv_kernel{run_depthwise_conv, depthwise_conv_scratch,
                                                    describe_depthwise_conv};
}  // namespace fastdw::avx512
