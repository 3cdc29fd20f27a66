#include "csrc/aten_fallback.h"
#include "csrc/cpu/ops.h"
#include "csrc/packing.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {

Tensor classifier_head_packed(const Tensor& x, const Tensor& packed, int64_t channels_out) {
  check_images("x", x, false);
  BlobShape shape;
  shape.channels_in = x.size(1);
  shape.channels_out = channels_out;
  const Tensor blob = readable_bytes(packed);
  const int64_t batch = x.size(0);
  LinearParams linear{};
  linear.weights = read_blob(BlobKind::classifier_head, shape, blob).pointwise;
  linear.batch = batch;
  linear.channels_in = shape.channels_in;
  linear.channels_out = channels_out;
  Tensor y = new_tensor({batch, channels_out}, ScalarType::Float);
  if (batch > 0) {
    const Tensor images = to_float_nhwc(x);
    const Tensor means = new_tensor({batch, shape.channels_in}, ScalarType::Float);
    GlobalPoolParams pool{};
    pool.x = float_data(images);
    pool.y = static_cast<float*>(means.mutable_data_ptr());
    pool.batch = batch;
    pool.pixels = pool.divisor = x.size(2) * x.size(3);
    pool.channels = shape.channels_in;
    pool.x_layout = nhwc_layout(pool.channels, pool.pixels);
    run_in_parallel(kernel_table().global_pool, pool, images.numel());
    linear.x = pool.y;
    linear.y = static_cast<float*>(y.mutable_data_ptr());
    run_in_parallel(kernel_table().linear, linear, y.numel() * shape.channels_in);
  }
  return x.scalar_type() == ScalarType::Float ? y : torch::stable::to(y, x.scalar_type());
}

Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_classifier_head(x, weight, bias);
  if (aten::is_needed(x)) return aten::classifier_head(x, weight, bias);
  return classifier_head_packed(x, pack_classifier_head(weight, bias), weight.size(0));
}

}  // namespace fastdw
