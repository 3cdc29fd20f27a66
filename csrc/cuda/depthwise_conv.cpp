#include "kernels/cuda/depthwise_conv.h"

#include "csrc/aten_fallback.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                      const IntList& dilation, const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_depthwise_conv(x, convolution);
  if (aten::is_needed(x)) return aten::depthwise_conv(x, convolution, {stride, padding, dilation});
  const Sampling sampling = sampling_of(x.size(2), x.size(3), weight.size(2), weight.size(3),
                                        stride, padding, dilation);
  const ConvOperands operands(convolution, x);
  const bool channels_last = is_channels_last_result(x, suggests_channels_last(weight));
  Tensor y = empty_like_device(
      x, {x.size(0), weight.size(0), sampling.height_out, sampling.width_out}, channels_last);
  if (y.numel() == 0) return y;
  const Tensor images = channels_last ? interleaved(x) : planes(x);
  DepthwiseParams params{};
  params.x = images.const_data_ptr();
  params.weight = operands.weight();
  params.y = y.mutable_data_ptr();
  params.channels_last = channels_last;
  params.epilogue = operands.epilogue();
  params.dtype = dtype_of("x", x);
  params.batch = x.size(0);
  params.height = x.size(2);
  params.width = x.size(3);
  params.channels_in = x.size(1);
  params.multiplier = weight.size(0) / x.size(1);
  params.height_out = sampling.height_out;
  params.width_out = sampling.width_out;
  params.window = sampling.window;
  launch(x, [&](const Device& device, void*, unsigned*) {
    return plan_depthwise_conv(params, device);
  });
  return y;
}

}  // namespace fastdw::cuda
