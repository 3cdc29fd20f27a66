#include "kernels/cpu/simd/portable.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/resize.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::portable {
extern const Kernel<ResizeParams> resize_kernel;
const Kernel<ResizeParams> resize_kernel{run_resize, resize_scratch, describe_resize};
}  // namespace fastdw::portable
