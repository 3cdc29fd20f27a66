// The CPU implementations that csrc/library.cpp registers, one source file per op.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "csrc/tensor_checks.h"

namespace fastdw {

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                      const IntList& dilation, const std::string& activation);
Tensor depthwise_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                             const IntList& kernel_size, const IntList& stride,
                             const IntList& padding, const IntList& dilation,
                             const std::string& activation, bool channels_last);

// The result and the means of its images, [batch, channels_out] in fp32 (fp64 where x is).
std::tuple<Tensor, Tensor> depthwise_conv_pooled(
    const Tensor& x, const Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias,
    const IntList& stride, const IntList& padding, const IntList& dilation,
    const std::string& activation);
std::tuple<Tensor, Tensor> depthwise_conv_pooled_packed(
    const Tensor& x, const Tensor& packed, int64_t channels_out, const IntList& kernel_size,
    const IntList& stride, const IntList& padding, const IntList& dilation,
    const std::string& activation, bool channels_last);

Tensor pointwise_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias, const OptionalTensor& residual,
                      const std::string& activation);
Tensor pointwise_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                             const OptionalTensor& residual, const std::string& activation,
                             bool channels_last);

Tensor stem_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                 const OptionalTensor& bias, const IntList& stride, const IntList& padding,
                 const std::string& activation);
Tensor stem_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                        const IntList& kernel_size, const IntList& stride, const IntList& padding,
                        const std::string& activation, bool channels_last);

Tensor separable_block(const Tensor& x, const Tensor& depthwise_weight,
                       const OptionalTensor& depthwise_scale, const OptionalTensor& depthwise_bias,
                       const Tensor& pointwise_weight, const OptionalTensor& pointwise_scale,
                       const OptionalTensor& pointwise_bias, const IntList& stride,
                       const IntList& padding, const IntList& dilation,
                       const std::string& depthwise_activation,
                       const std::string& pointwise_activation);
Tensor separable_block_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                              const IntList& kernel_size, const IntList& stride,
                              const IntList& padding, const IntList& dilation,
                              const std::string& depthwise_activation,
                              const std::string& pointwise_activation, bool channels_last);

Tensor inverted_residual(const Tensor& x, const OptionalTensor& expand_weight,
                         const OptionalTensor& expand_scale, const OptionalTensor& expand_bias,
                         const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                         const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                         const OptionalTensor& project_scale, const OptionalTensor& project_bias,
                         const IntList& stride, const IntList& padding, const IntList& dilation,
                         bool residual, const std::string& expand_activation,
                         const std::string& depthwise_activation,
                         const std::string& project_activation);
Tensor inverted_residual_packed(const Tensor& x, const Tensor& packed, int64_t channels_out,
                                const IntList& kernel_size, const IntList& stride,
                                const IntList& padding, const IntList& dilation, bool residual,
                                const std::string& expand_activation,
                                const std::string& depthwise_activation,
                                const std::string& project_activation, bool channels_last);

Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);
Tensor classifier_head_packed(const Tensor& x, const Tensor& packed, int64_t channels_out);

std::vector<Tensor> planned_network(const Tensor& x, const Tensor& packed,
                                    const std::string& program);

// Seconds of every step of a planned network in so many calls: [runs, steps].
constexpr int64_t kMostRuns = 1000000;
Tensor profile_network(const Tensor& x, const Tensor& packed, const std::string& program,
                       int64_t runs);
// The plan of a network for such a call, as JSON.
std::string explain_network(const std::string& program, int64_t batch, int64_t height,
                            int64_t width, int64_t threads);

// GFLOP/s in registers, and GB/s reading so many bytes a thread, of all threads together, slice by
// slice: [slices].
Tensor measure_peak(int64_t threads, double seconds);
Tensor measure_bandwidth(int64_t threads, int64_t bytes, double seconds);

}  // namespace fastdw
