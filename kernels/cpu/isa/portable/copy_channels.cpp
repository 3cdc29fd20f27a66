#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/copy_channels.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<CopyChannelsParams> copy_channels_kernel;
const Kernel<CopyChannelsParams> copy_channels_kernel{run_copy_channels, copy_channels_scratch, describe_copy_channels};
}  // namespace fastdw::portable
