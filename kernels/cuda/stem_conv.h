// Dense convolution of few input channels: which kernel, tiles and grid for a shape. Pure host
// arithmetic.
#pragma once

#include "kernels/cuda/launch.h"

namespace fastdw::cuda {

LaunchList plan_stem_conv(const StemParams& params, const Device& device);

}  // namespace fastdw::cuda
