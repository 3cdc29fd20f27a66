#include "csrc/aten_fallback.h"
#include "csrc/cuda/inverted_residual.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {

Tensor separable_block(const Tensor& x, const Tensor& depthwise_weight,
                       const OptionalTensor& depthwise_scale, const OptionalTensor& depthwise_bias,
                       const Tensor& pointwise_weight, const OptionalTensor& pointwise_scale,
                       const OptionalTensor& pointwise_bias, const IntList& stride,
                       const IntList& padding, const IntList& dilation,
                       const std::string& depthwise_activation,
                       const std::string& pointwise_activation) {
  const Convolution depthwise{depthwise_weight, depthwise_scale, depthwise_bias,
                              depthwise_activation};
  const Convolution pointwise{pointwise_weight, pointwise_scale, pointwise_bias,
                              pointwise_activation};
  const Sliding sliding{stride, padding, dilation};
  check_separable_block(x, depthwise, pointwise);
  return aten::is_needed(x) ? aten::block(x, std::nullopt, depthwise, pointwise, sliding, false)
                            : run_block(x, std::nullopt, depthwise, pointwise, sliding, false);
}

}  // namespace fastdw::cuda
