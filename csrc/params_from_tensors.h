// From tensors and schema arguments to the structs of kernels/params.h: the sampling window, the
// memory format of x, and the output.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "csrc/new_tensor.h"
#include "csrc/tensor_checks.h"
#include "kernels/params.h"

namespace fastdw {

using torch::headeronly::MemoryFormat;

struct Sampling {
  Window window;
  int64_t height_out, width_out;
};

inline void check_int_list(const char* name, const IntList& values, size_t count, int64_t lowest) {
  bool good = values.size() == count;
  for (const int64_t value : values)
    good = good && value >= lowest && value <= std::numeric_limits<int32_t>::max();
  FASTDW_CHECK(good, name, ": expected ", count, " ints of at least ", lowest, ", got ",
               shape_text(values));
}

// padding: left, right, top, bottom, or empty for TensorFlow's SAME.
inline Sampling sampling_of(int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w,
                            const IntList& stride, const IntList& padding,
                            const IntList& dilation) {
  check_int_list("stride", stride, 2, 1);
  check_int_list("dilation", dilation, 2, 1);
  if (!padding.empty()) check_int_list("padding", padding, 4, 0);
  struct Axis {
    int64_t before, size_out;
  };
  const auto sample = [&](const char* axis, int64_t size, int64_t kernel, int side) -> Axis {
    const int64_t step = stride[side], reach = dilation[side] * (kernel - 1) + 1;
    if (padding.empty()) {
      const int64_t size_out = (size + step - 1) / step;
      return {std::max<int64_t>((size_out - 1) * step + reach - size, 0) / 2, size_out};
    }
    const int64_t before = padding[side == 0 ? 2 : 0], after = padding[side == 0 ? 3 : 1];
    FASTDW_CHECK(size + before + after >= reach, "x: ", axis, " ", size, " with padding ", before,
                 " + ", after, " is less than the ", reach, " that the kernel spans");
    return {before, (size + before + after - reach) / step + 1};
  };
  const Axis vertical = sample("height", height, kernel_h, 0);
  const Axis horizontal = sample("width", width, kernel_w, 1);
  const Window window{kernel_h,    kernel_w,    stride[0],         stride[1],
                      dilation[0], dilation[1], horizontal.before, vertical.before};
  return {window, vertical.size_out, horizontal.size_out};
}

inline Tensor to_float(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? tensor
                                                   : torch::stable::to(tensor, ScalarType::Float);
}

// fp32 and dense in [batch, height, width, channels] order; the tensor itself where it is that.
inline Tensor to_float_nhwc(const Tensor& tensor) {
  const Tensor converted = to_float(tensor);
  return is_dense_nhwc(converted)
             ? converted
             : torch::stable::contiguous(converted, MemoryFormat::ChannelsLast);
}

inline const float* float_data(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

// The NHWC image that a kernel writes in its dtype, handed out in the dtype and layout of the op's
// result.
class OutputImages {
 public:
  OutputImages(const Tensor& x, int64_t channels, int64_t height, int64_t width, bool channels_last,
               ScalarType kernel_dtype = ScalarType::Float)
      : dtype_(x.scalar_type()), channels_last_(channels_last) {
    // Of one channel or one pixel both layouts are the same memory, but torch's strides differ.
    const bool nhwc = channels_last || (channels != 1 && height * width != 1);
    images_ = new_tensor({x.size(0), channels, height, width}, kernel_dtype, nhwc, x.device());
  }

  int64_t channels() const { return images_.size(1); }
  int64_t numel() const { return images_.numel(); }
  void* address() const { return images_.mutable_data_ptr(); }
  float* data() const { return static_cast<float*>(address()); }

  Tensor finish() {
    if (dtype_ != images_.scalar_type()) images_ = torch::stable::to(images_, dtype_);
    if (!channels_last_) images_ = torch::stable::contiguous(images_);
    return std::move(images_);
  }

 private:
  ScalarType dtype_;
  bool channels_last_;
  Tensor images_;
};

// Whether the result is channels_last, as torch's conv2d decides it.
inline bool is_channels_last_result(const Tensor& x, bool weight_channels_last) {
  return weight_channels_last || suggests_channels_last(x);
}

}  // namespace fastdw
