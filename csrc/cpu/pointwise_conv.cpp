#include "csrc/aten_fallback.h"
#include "csrc/cpu/ops.h"
#include "csrc/packing.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {
Tensor pointwise_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                             const OptionalTensor& residual, const std::string& activation,
                             bool channels_last) {
  check_images("x", x, false);
  check_residual(residual, x, channels_out);
  BlobShape shape;
  shape.channels_in = x.size(1);
  shape.channels_out = channels_out;
  const Tensor blob = readable_bytes(packed);
  PointwiseParams params{};
  params.weights = read_blob(BlobKind::pointwise_conv, shape, blob).pointwise;
  params.batch = 1;  // dense images are one long row of pixels
  params.pixels = x.size(0) * x.size(2) * x.size(3);
  params.channels_in = shape.channels_in;
  params.channels_out = channels_out;
  params.activation = parse_activation("activation", activation);

  OutputImages y(x, channels_out, x.size(2), x.size(3), is_channels_last_result(x, channels_last));
  if (y.numel() > 0) {
    const Tensor images = to_float_nhwc(x);
    const OptionalTensor added = residual ? OptionalTensor(to_float_nhwc(*residual)) : std::nullopt;
    params.x = float_data(images);
    params.residual = added ? float_data(*added) : nullptr;
    params.y = y.data();
    params.x_layout = nhwc_layout(shape.channels_in, params.pixels);
    params.y_layout = params.residual_layout = nhwc_layout(channels_out, params.pixels);
    run_in_parallel(kernel_table().pointwise_conv, params, y.numel() * shape.channels_in);
  }
  return y.finish();
}

Tensor pointwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const OptionalTensor& residual,
                      const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_pointwise_conv(x, convolution, residual);
  if (aten::is_needed(x)) return aten::pointwise_conv(x, convolution, residual);
  return pointwise_conv_packed(x, pack_pointwise_conv(weight, scale, bias), weight.size(0),
                               residual, activation, suggests_channels_last(weight));
}

}  // namespace fastdw
