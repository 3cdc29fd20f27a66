// The tensors of a call as kernels read them: dense, in x's dtype, aligned to 16 bytes; copies only
// where they are not. They must live until the launch; torch's allocator knows streams.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "csrc/cuda/device.h"
#include "csrc/op_checks.h"
#include "csrc/params_from_tensors.h"

namespace fastdw::cuda {

inline Tensor aligned(const Tensor& dense) {
  return is_aligned(dense) ? dense : torch::stable::clone(dense);
}

inline Tensor planes(const Tensor& images) {
  return aligned(torch::stable::contiguous(images));
}

inline Tensor interleaved(const Tensor& images) {
  return aligned(is_dense_nhwc(images)
                     ? images
                     : torch::stable::contiguous(images, MemoryFormat::ChannelsLast));
}

inline Tensor row_in_dtype(const Tensor& tensor, ScalarType dtype) {
  return aligned(torch::stable::contiguous(
      tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype)));
}

class ConvOperands {
 public:
  ConvOperands(const Convolution& convolution, const Tensor& x)
      : weight_(row_in_dtype(convolution.weight, x.scalar_type())),
        scale_(per_channel("scale", convolution.scale, x)),
        bias_(per_channel("bias", convolution.bias, x)),
        activation_(parse_activation("activation", convolution.activation)) {
    check_on_device("weight", convolution.weight, x);
  }

  const void* weight() const { return weight_.const_data_ptr(); }
  Epilogue epilogue() const { return {address(scale_), address(bias_), activation_}; }

 private:
  static OptionalTensor per_channel(const char* name, const OptionalTensor& values,
                                    const Tensor& x) {
    if (!values) return std::nullopt;
    check_on_device(name, *values, x);
    return row_in_dtype(*values, ScalarType::Float);
  }

  static const float* address(const OptionalTensor& values) {
    return values ? float_data(*values) : nullptr;
  }

  Tensor weight_;
  OptionalTensor scale_, bias_;
  Activation activation_;
};

}  // namespace fastdw::cuda
