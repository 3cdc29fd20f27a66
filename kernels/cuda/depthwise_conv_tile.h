// The depthwise convolution of 3x3 windows by tiles: how a shape is cut. Pure arithmetic.
#pragma once

#include "kernels/cuda/launch.h"

namespace fastdw::cuda {

// False where the shape is none for it: planes, other windows, channels that are no 16 bytes.
bool plan_depthwise_tile(const DepthwiseParams& params, const Device& device, LaunchList& list);

}  // namespace fastdw::cuda
