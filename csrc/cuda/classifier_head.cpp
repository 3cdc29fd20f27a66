#include "kernels/cuda/classifier_head.h"

#include "csrc/aten_fallback.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {

Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_classifier_head(x, weight, bias);
  check_on_device("weight", weight, x);
  if (bias) check_on_device("bias", *bias, x);
  if (aten::is_needed(x)) return aten::classifier_head(x, weight, bias);
  Tensor y = empty_like_device(x, {x.size(0), weight.size(0)}, false);
  if (y.numel() == 0) return y;
  const Tensor images = interleaved(x), rows = row_in_dtype(weight, x.scalar_type());
  const bool bias_is_fp32 = bias && bias->scalar_type() != x.scalar_type();
  const ScalarType bias_dtype = bias_is_fp32 ? ScalarType::Float : x.scalar_type();
  const OptionalTensor added =
      bias ? OptionalTensor(row_in_dtype(*bias, bias_dtype)) : std::nullopt;
  HeadParams params{};
  params.x = images.const_data_ptr();
  params.weight = rows.const_data_ptr();
  params.bias = added ? added->const_data_ptr() : nullptr;
  params.bias_is_fp32 = bias_is_fp32;
  params.y = y.mutable_data_ptr();
  params.dtype = dtype_of("x", x);
  params.batch = x.size(0);
  params.pixels = x.size(2) * x.size(3);
  params.channels_in = x.size(1);
  params.channels_out = weight.size(0);
  launch(x, [&](const Device& device, void* workspace, unsigned*) {
    params.workspace = workspace;
    return plan_classifier_head(params, device);
  });
  return y;
}

}  // namespace fastdw::cuda
