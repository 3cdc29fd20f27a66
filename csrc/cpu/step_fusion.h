// What the steps of a plan take over from their neighbours, before values get their places.
#pragma once

#include "csrc/cpu/network_plan.h"

namespace fastdw {

// A stem and the block without expansion behind it become one step, as does a stem or a 1x1
// convolution with the depthwise convolution behind it (that a squeeze-excite keeps from being a
// block), if nothing else reads what lies between.
void fuse_steps(NetworkPlan& plan);

// Where the result of a depthwise convolution is pooled, the pool adds the sums of its rows, which
// the convolution takes in its own pass.
void pool_row_sums(NetworkPlan& plan);

}  // namespace fastdw
