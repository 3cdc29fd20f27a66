// The CUDA implementations that csrc/cuda/library.cpp registers, one source file per op.
#pragma once

#include <string>
#include <vector>

#include "csrc/tensor_checks.h"

namespace fastdw::cuda {

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                      const IntList& dilation, const std::string& activation);

Tensor pointwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const OptionalTensor& residual,
                      const std::string& activation);

Tensor stem_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                 const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                 const std::string& activation);

Tensor separable_block(const Tensor& x, const Tensor& depthwise_weight,
                       const OptionalTensor& depthwise_scale, const OptionalTensor& depthwise_bias,
                       const Tensor& pointwise_weight, const OptionalTensor& pointwise_scale,
                       const OptionalTensor& pointwise_bias, const IntList& stride,
                       const IntList& padding, const IntList& dilation,
                       const std::string& depthwise_activation,
                       const std::string& pointwise_activation);

Tensor inverted_residual(const Tensor& x, const OptionalTensor& expand_weight,
                         const OptionalTensor& expand_scale, const OptionalTensor& expand_bias,
                         const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                         const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                         const OptionalTensor& project_scale, const OptionalTensor& project_bias,
                         const IntList& stride, const IntList& padding, const IntList& dilation,
                         bool residual, const std::string& expand_activation,
                         const std::string& depthwise_activation,
                         const std::string& project_activation);

Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);

std::vector<Tensor> planned_network(const Tensor& x, const Tensor& packed,
                                    const std::string& program);

}  // namespace fastdw::cuda
