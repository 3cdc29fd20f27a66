// The call that inverted_residual and separable_block share: both run the inverted_residual kernel.
#pragma once

#include "csrc/op_checks.h"

namespace fastdw::cuda {

// Of checked arguments that no aten op is needed for.
Tensor run_block(const Tensor& x, const OptionalConvolution& expand, const Convolution& depthwise,
                 const Convolution& project, const Sliding& sliding, bool residual);

}  // namespace fastdw::cuda
