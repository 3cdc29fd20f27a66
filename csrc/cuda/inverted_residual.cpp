#include "csrc/cuda/inverted_residual.h"

#include "csrc/aten_fallback.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"
#include "kernels/cuda/inverted_residual.h"

namespace fastdw::cuda {

Tensor run_block(const Tensor& x, const OptionalConvolution& expand, const Convolution& depthwise,
                 const Convolution& project, const Sliding& sliding, bool residual) {
  const Tensor &filter = depthwise.weight, &last = project.weight;
  const Sampling sampling =
      sampling_of(x.size(2), x.size(3), filter.size(2), filter.size(3), sliding.stride,
                  sliding.padding, sliding.dilation);
  FASTDW_CHECK(!residual || (x.size(1) == last.size(0) && x.size(2) == sampling.height_out &&
                             x.size(3) == sampling.width_out),
               "residual: x ", shape_of(x), " and the result [", x.size(0), ", ", last.size(0),
               ", ", sampling.height_out, ", ", sampling.width_out, "] differ in shape");
  std::optional<ConvOperands> expansion;
  if (expand) expansion.emplace(*expand, x);
  const ConvOperands filters(depthwise, x), projection(project, x);
  const bool channels_last = (expand && suggests_channels_last(expand->weight)) ||
                             suggests_channels_last(filter) || suggests_channels_last(last);
  OutputImages y(x, last.size(0), sampling.height_out, sampling.width_out,
                 is_channels_last_result(x, channels_last), x.scalar_type());
  if (y.numel() == 0) return y.finish();
  const Tensor images = interleaved(x);
  InvertedResidualParams params{};
  params.x = images.const_data_ptr();
  if (expansion) {
    params.expand_weight = expansion->weight();
    params.expand = expansion->epilogue();
  }
  params.depthwise_weight = filters.weight();
  params.depthwise = filters.epilogue();
  params.project_weight = projection.weight();
  params.project = projection.epilogue();
  params.y = y.address();
  params.residual = residual;
  params.dtype = dtype_of("x", x);
  params.tf32 = params.dtype == DType::fp32 && allow_tf32();
  params.batch = x.size(0);
  params.height = x.size(2);
  params.width = x.size(3);
  params.channels_in = x.size(1);
  params.channels_hidden = filter.size(0);
  params.channels_out = last.size(0);
  params.height_out = sampling.height_out;
  params.width_out = sampling.width_out;
  params.window = sampling.window;
  params.plan = wished().blocks;
  launch(x, [&](const Device& device, void* workspace, unsigned* counters) {
    params.workspace = workspace;
    params.counters = counters;
    return plan_inverted_residual(params, device);
  });
  return y.finish();
}

Tensor inverted_residual(const Tensor& x, const OptionalTensor& expand_weight,
                         const OptionalTensor& expand_scale, const OptionalTensor& expand_bias,
                         const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                         const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                         const OptionalTensor& project_scale, const OptionalTensor& project_bias,
                         const IntList& stride, const IntList& padding, const IntList& dilation,
                         bool residual, const std::string& expand_activation,
                         const std::string& depthwise_activation,
                         const std::string& project_activation) {
  const OptionalConvolution expand =
      expansion(expand_weight, expand_scale, expand_bias, expand_activation);
  const Convolution depthwise{depthwise_weight, depthwise_scale, depthwise_bias,
                              depthwise_activation};
  const Convolution project{project_weight, project_scale, project_bias, project_activation};
  const Sliding sliding{stride, padding, dilation};
  check_inverted_residual(x, expand, depthwise, project);
  return aten::is_needed(x) ? aten::block(x, expand, depthwise, project, sliding, residual)
                            : run_block(x, expand, depthwise, project, sliding, residual);
}

}  // namespace fastdw::cuda
