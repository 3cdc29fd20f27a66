#include "kernels/cuda/stem_conv.h"

#include "csrc/aten_fallback.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {

Tensor stem_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                 const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                 const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_stem_conv(x, convolution);
  const IntList dilation{1, 1};
  if (aten::is_needed(x)) return aten::stem_conv(x, convolution, {stride, padding, dilation});
  const Sampling sampling = sampling_of(x.size(2), x.size(3), weight.size(2), weight.size(3),
                                        stride, padding, dilation);
  const ConvOperands operands(convolution, x);
  OutputImages y(x, weight.size(0), sampling.height_out, sampling.width_out,
                 is_channels_last_result(x, suggests_channels_last(weight)), x.scalar_type());
  if (y.numel() == 0) return y.finish();
  StemParams params{};
  params.channels_last = !x.is_contiguous();
  const Tensor images = params.channels_last ? interleaved(x) : planes(x);
  params.x = images.const_data_ptr();
  params.weight = operands.weight();
  params.y = y.address();
  params.epilogue = operands.epilogue();
  params.dtype = dtype_of("x", x);
  params.tf32 = params.dtype == DType::fp32 && allow_tf32();
  params.batch = x.size(0);
  params.height = x.size(2);
  params.width = x.size(3);
  params.channels_in = x.size(1);
  params.channels_out = weight.size(0);
  params.height_out = sampling.height_out;
  params.width_out = sampling.width_out;
  params.window = sampling.window;
  launch(x, [&](const Device& device, void*, unsigned*) {
    return plan_stem_conv(params, device);
  });
  return y.finish();
}

}  // namespace fastdw::cuda
