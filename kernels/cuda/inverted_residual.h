// A whole block in one launch, the hidden tensor never in global memory; also a depthwise-separable
// block (expand_weight null).
#pragma once

#include "kernels/cuda/launch.h"

namespace fastdw::cuda {

LaunchList plan_inverted_residual(const InvertedResidualParams& params, const Device& device);

}  // namespace fastdw::cuda
