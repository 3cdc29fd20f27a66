#include "csrc/cpu/inverted_residual.h"

#include <cstring>

#include "csrc/aten_fallback.h"
#include "csrc/cpu/ops.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {

Tensor run_block(const Tensor& x, const Tensor& packed, const BlockCall& call) {
  const BlobShape& shape = call.shape;
  const Tensor blob = readable_bytes(packed);
  const BlobWeights weights = read_blob(call.kind, shape, blob);
  const Sampling sampling = sampling_of(x.size(2), x.size(3), shape.kernel_h, shape.kernel_w,
                                        call.stride, call.padding, call.dilation);
  InvertedResidualParams params{};
  params.has_expand = shape.has_expand;
  params.residual = call.residual;
  params.expand = weights.expand;
  params.depthwise = weights.depthwise;
  params.project = weights.pointwise;
  params.batch = x.size(0);
  params.height = x.size(2);
  params.width = x.size(3);
  params.channels_in = shape.channels_in;
  params.channels_hidden = shape.channels_hidden;
  params.channels_out = shape.channels_out;
  params.height_out = sampling.height_out;
  params.width_out = sampling.width_out;
  params.window = sampling.window;
  params.expand_activation = call.expand_activation;
  params.depthwise_activation = call.depthwise_activation;
  params.project_activation = call.project_activation;
  FASTDW_CHECK(
      !call.residual || (shape.channels_in == shape.channels_out &&
                         params.height == params.height_out && params.width == params.width_out),
      "residual: x ", shape_of(x), " and the result [", params.batch, ", ", shape.channels_out,
      ", ", params.height_out, ", ", params.width_out, "] differ in shape");

  OutputImages y(x, shape.channels_out, sampling.height_out, sampling.width_out,
                 is_channels_last_result(x, call.channels_last));
  if (y.numel() > 0) {
    const Tensor images = to_float_nhwc(x);
    params.x = float_data(images);
    params.y = y.data();
    params.x_layout = nhwc_layout(shape.channels_in, params.height * params.width);
    params.y_layout = nhwc_layout(shape.channels_out, params.height_out * params.width_out);
    const int64_t pixels_out = params.batch * params.height_out * params.width_out;
    const int64_t expanded =
        shape.has_expand ? params.batch * params.height * params.width * shape.channels_in : 0;
    run_in_parallel(
        kernel_table().inverted_residual, params,
        shape.channels_hidden *
            (expanded + pixels_out * (shape.kernel_h * shape.kernel_w + shape.channels_out)));
  }
  return y.finish();
}

Tensor inverted_residual_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                                const IntList& kernel_size, const IntList& stride,
                                const IntList& padding, const IntList& dilation, bool residual,
                                const std::string& expand_activation,
                                const std::string& depthwise_activation,
                                const std::string& project_activation, bool channels_last) {
  check_images("x", x, false);
  check_int_list("kernel_size", kernel_size, 2, 1);
  const PackedBlock block = packed_block(packed);
  BlobShape shape;
  shape.channels_in = x.size(1);
  shape.channels_hidden = block.channels_hidden;
  shape.channels_out = channels_out;
  shape.kernel_h = kernel_size[0];
  shape.kernel_w = kernel_size[1];
  shape.has_expand = block.has_expand;
  return run_block(x, packed,
                   {BlobKind::inverted_residual, shape, stride, padding, dilation, residual,
                    parse_activation("expand_activation", expand_activation),
                    parse_activation("depthwise_activation", depthwise_activation),
                    parse_activation("project_activation", project_activation), channels_last});
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
  check_inverted_residual(x, expand, depthwise, project);
  if (aten::is_needed(x))
    return aten::block(x, expand, depthwise, project, {stride, padding, dilation}, residual);
  const Tensor packed = pack_inverted_residual(expand_weight, expand_scale, expand_bias,
                                               depthwise_weight, depthwise_scale, depthwise_bias,
                                               project_weight, project_scale, project_bias);
  const bool channels_last = (expand_weight && suggests_channels_last(*expand_weight)) ||
                             suggests_channels_last(depthwise_weight) ||
                             suggests_channels_last(project_weight);
  return inverted_residual_packed(x, packed, project_weight.size(0),
                                  {depthwise_weight.size(2), depthwise_weight.size(3)}, stride,
                                  padding, dilation, residual, expand_activation,
                                  depthwise_activation, project_activation, channels_last);
}

}  // namespace fastdw
