#include "csrc/aten_fallback.h"
#include "csrc/cpu/inverted_residual.h"
#include "csrc/cpu/ops.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {

Tensor separable_block_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                              const IntList& kernel_size, const IntList& stride,
                              const IntList& padding, const IntList& dilation,
                              const std::string& depthwise_activation,
                              const std::string& pointwise_activation, bool channels_last) {
  check_images("x", x, false);
  check_int_list("kernel_size", kernel_size, 2, 1);
  BlobShape shape;
  shape.channels_in = shape.channels_hidden = x.size(1);
  shape.channels_out = channels_out;
  shape.kernel_h = kernel_size[0];
  shape.kernel_w = kernel_size[1];
  return run_block(
      x, packed,
      {BlobKind::separable_block, shape, stride, padding, dilation, false, Activation::none,
       parse_activation("depthwise_activation", depthwise_activation),
       parse_activation("pointwise_activation", pointwise_activation), channels_last});
}

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
  check_separable_block(x, depthwise, pointwise);
  if (aten::is_needed(x))
    return aten::block(x, std::nullopt, depthwise, pointwise, {stride, padding, dilation}, false);
  const Tensor packed = pack_separable_block(depthwise_weight, depthwise_scale, depthwise_bias,
                                             pointwise_weight, pointwise_scale, pointwise_bias);
  const bool channels_last =
      suggests_channels_last(depthwise_weight) || suggests_channels_last(pointwise_weight);
  return separable_block_packed(
      x, packed, pointwise_weight.size(0), {depthwise_weight.size(2), depthwise_weight.size(3)},
      stride, padding, dilation, depthwise_activation, pointwise_activation, channels_last);
}

}  // namespace fastdw
