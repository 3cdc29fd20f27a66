#include "kernels/cpu/simd/avx2.h"
// The vector type comes first: the kernel is written over it.
#include "kernels/cpu/resize.h"
#include "kernels/cpu/kernel_table.h"

namespace fastdw::avx2 {
extern const Kernel<ResizeParams> resize_kernel;
const Kernel<ResizeParams> resize_kernel{run_resize, resize_scratch, describe_resize};
}  // namespace fastdw::avx2
