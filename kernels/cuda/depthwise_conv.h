// Depthwise convolution: which kernel, tiles and grid for a shape. Pure arithmetic on the host.
#pragma once

#include "kernels/cuda/launch.h"

namespace fastdw::cuda {

LaunchList plan_depthwise_conv(const DepthwiseParams& params, const Device& device);

}  // namespace fastdw::cuda
