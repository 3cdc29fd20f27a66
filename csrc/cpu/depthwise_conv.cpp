#include "csrc/aten_fallback.h"
#include "csrc/cpu/ops.h"
#include "csrc/packing.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {

namespace {

// The weights' blob, and the window that slides over x.
struct PackedConvolution {
  const Tensor& packed;
  int64_t channels_out;
  const IntList& kernel_size;
  const Sliding& sliding;
  const std::string& activation;
  bool channels_last;
};

Tensor row_sums_of(const DepthwiseParams& params) {
  const int64_t channels = params.channels_in * params.multiplier;
  const Layout layout = row_sums_layout(channels, params.height_out);
  return new_tensor({params.batch, params.height_out, layout.pixel}, ScalarType::Float);
}

// [batch, channels]: the rows' sums of each image added up, in an order that no thread changes.
Tensor means_of(const DepthwiseParams& params) {
  GlobalPoolParams pool{};
  pool.channels = params.channels_in * params.multiplier;
  const Tensor means = new_tensor({params.batch, pool.channels}, ScalarType::Float);
  pool.x = params.row_sums;
  pool.y = static_cast<float*>(means.mutable_data_ptr());
  pool.x_layout = row_sums_layout(pool.channels, params.height_out);
  pool.batch = params.batch;
  pool.pixels = params.height_out;
  pool.divisor = params.height_out * params.width_out;
  run_in_parallel(kernel_table().global_pool, pool, means.numel() * pool.pixels);
  return means;
}

// means: where those of the result go, or null.
Tensor convolve(const Tensor& x, const PackedConvolution& convolution, Tensor* means) {
  const auto& [packed, channels_out, kernel_size, sliding, activation, channels_last] = convolution;
  check_images("x", x, false);
  check_int_list("kernel_size", kernel_size, 2, 1);
  const int64_t channels_in = x.size(1);
  FASTDW_CHECK(channels_out > 0 && channels_out % channels_in == 0,
               "weight: expected a multiple of x's ", channels_in, " channels, got ", channels_out);
  BlobShape shape;
  shape.channels_out = channels_out;
  shape.kernel_h = kernel_size[0];
  shape.kernel_w = kernel_size[1];
  const Tensor blob = readable_bytes(packed);
  const Sampling sampling = sampling_of(x.size(2), x.size(3), shape.kernel_h, shape.kernel_w,
                                        sliding.stride, sliding.padding, sliding.dilation);
  DepthwiseParams params{};
  params.weights = read_blob(BlobKind::depthwise_conv, shape, blob).depthwise;
  params.batch = x.size(0);
  params.height = x.size(2);
  params.width = x.size(3);
  params.channels_in = channels_in;
  params.multiplier = channels_out / channels_in;
  params.height_out = sampling.height_out;
  params.width_out = sampling.width_out;
  params.window = sampling.window;
  params.activation = parse_activation("activation", activation);

  OutputImages y(x, channels_out, sampling.height_out, sampling.width_out,
                 is_channels_last_result(x, channels_last));
  if (y.numel() == 0) {
    if (means) *means = new_tensor({params.batch, channels_out}, ScalarType::Float);
    return y.finish();
  }
  const Tensor images = to_float_nhwc(x);
  params.x = float_data(images);
  params.y = y.data();
  params.x_layout = nhwc_layout(x.size(1), params.height * params.width);
  params.y_layout = nhwc_layout(y.channels(), params.height_out * params.width_out);
  std::optional<Tensor> sums;
  if (means) {
    sums = row_sums_of(params);
    params.row_sums = static_cast<float*>(sums->mutable_data_ptr());
  }
  run_in_parallel(kernel_table().depthwise_conv, params,
                  y.numel() * shape.kernel_h * shape.kernel_w);
  if (means) *means = means_of(params);
  return y.finish();
}

}  // namespace

Tensor depthwise_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                             const IntList& kernel_size, const IntList& stride,
                             const IntList& padding, const IntList& dilation,
                             const std::string& activation, bool channels_last) {
  const Sliding sliding{stride, padding, dilation};
  return convolve(x, {packed, channels_out, kernel_size, sliding, activation, channels_last},
                  nullptr);
}

std::tuple<Tensor, Tensor> depthwise_conv_pooled_packed(
    const Tensor& x, const Tensor& packed, int64_t channels_out, const IntList& kernel_size,
    const IntList& stride, const IntList& padding, const IntList& dilation,
    const std::string& activation, bool channels_last) {
  const Sliding sliding{stride, padding, dilation};
  Tensor means;
  const Tensor y = convolve(
      x, {packed, channels_out, kernel_size, sliding, activation, channels_last}, &means);
  return {y, means};
}

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                      const IntList& dilation, const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_depthwise_conv(x, convolution);
  if (aten::is_needed(x)) return aten::depthwise_conv(x, convolution, {stride, padding, dilation});
  return depthwise_conv_packed(x, pack_depthwise_conv(weight, scale, bias), weight.size(0),
                               {weight.size(2), weight.size(3)}, stride, padding, dilation,
                               activation, suggests_channels_last(weight));
}

std::tuple<Tensor, Tensor> depthwise_conv_pooled(
    const Tensor& x, const Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias,
    const IntList& stride, const IntList& padding, const IntList& dilation,
    const std::string& activation) {
  const Convolution convolution{weight, scale, bias, activation};
  check_depthwise_conv(x, convolution);
  if (aten::is_needed(x)) {
    const Tensor y = aten::depthwise_conv(x, convolution, {stride, padding, dilation});
    return {y, aten::means_of_images(y)};
  }
  return depthwise_conv_pooled_packed(x, pack_depthwise_conv(weight, scale, bias), weight.size(0),
                                      {weight.size(2), weight.size(3)}, stride, padding, dilation,
                                      activation, suggests_channels_last(weight));
}

}  // namespace fastdw
