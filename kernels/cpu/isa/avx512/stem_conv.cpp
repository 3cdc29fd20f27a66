#include "kernels/cpu/simd/avx512.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/stem_conv.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx512 {
extern const Kernel<StemParams> stem_conv_kernel;
const Kernel<StemParams> stem_conv_kernel{run_stem_conv, stem_conv_scratch, describe_stem_conv};
}  // namespace fastdw::avx512
