#include "kernels/cpu/simd/avx512.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/hidden_share_sum.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx512 {
extern const Kernel<HiddenShareSumParams> hidden_share_sum_kernel;
const Kernel<HiddenShareSumParams> hidden_share_sum_kernel{
    run_hidden_share_sum, hidden_share_sum_scratch, describe_hidden_share_sum};
}  // namespace fastdw::avx512
