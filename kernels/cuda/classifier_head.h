// The launches of a classifier head: a pool, then a linear layer.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

// Without a weight the pool alone: y is [batch, channels_in]. workspace may be null as long as only
// workspace_bytes is looked at.
LaunchList plan_classifier_head(const HeadParams& params, const Device& device);

}  // namespace fastdw::cuda
