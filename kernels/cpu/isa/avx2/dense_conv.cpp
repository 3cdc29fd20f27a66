#include "kernels/cpu/simd/avx2.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/dense_conv.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx2 {
extern const Kernel<DenseConvParams> dense_conv_kernel;
const Kernel<DenseConvParams> dense_conv_kernel{run_dense_conv, dense_conv_scratch, describe_dense_conv};
}  // namespace fastdw::avx2
