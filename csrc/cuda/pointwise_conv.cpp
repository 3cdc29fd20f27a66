#include "kernels/cuda/pointwise_conv.h"

#include "csrc/aten_fallback.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {

Tensor pointwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const OptionalTensor& residual,
                      const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_pointwise_conv(x, convolution, residual);
  if (residual) check_on_device("residual", *residual, x);
  if (aten::is_needed(x)) return aten::pointwise_conv(x, convolution, residual);
  const ConvOperands operands(convolution, x);
  OutputImages y(x, weight.size(0), x.size(2), x.size(3),
                 is_channels_last_result(x, suggests_channels_last(weight)), x.scalar_type());
  if (y.numel() == 0) return y.finish();
  const Tensor images = interleaved(x);
  const OptionalTensor added = residual ? OptionalTensor(interleaved(*residual)) : std::nullopt;
  PointwiseParams params{};
  params.x = images.const_data_ptr();
  params.weight = operands.weight();
  params.residual = added ? added->const_data_ptr() : nullptr;
  params.y = y.address();
  params.epilogue = operands.epilogue();
  params.dtype = dtype_of("x", x);
  params.tf32 = params.dtype == DType::fp32 && allow_tf32();
  params.images = x.size(0);
  params.pixels = x.size(0) * x.size(2) * x.size(3);
  params.channels_in = x.size(1);
  params.channels_out = weight.size(0);
  launch(x, [&](const Device& device, void* workspace, unsigned*) {
    params.workspace = workspace;
    return plan_pointwise_conv(params, device);
  });
  return y.finish();
}

}  // namespace fastdw::cuda
