// The launches of a pointwise convolution.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

// workspace may be null as long as only workspace_bytes is looked at.
LaunchList plan_pointwise_conv(const PointwiseParams& params, const Device& device);

// The same with one residual for all pixels, [channels_out]: a linear layer and its bias.
LaunchList plan_linear(const PointwiseParams& params, const Device& device);

}  // namespace fastdw::cuda
