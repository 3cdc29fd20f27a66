// The checks of an op's plain form, the same on every device: whole convolutions, and which sizes
// must agree. What packed weights must be is checked in csrc/packing.cpp.
#pragma once

#include <optional>
#include <string>

#include "csrc/tensor_checks.h"

namespace fastdw {

// act(scale * conv(x) + bias)
struct Convolution {
  const Tensor& weight;
  const OptionalTensor &scale, &bias;
  const std::string& activation;
};

// A block's expansion, which may be absent.
using OptionalConvolution = std::optional<Convolution>;

inline OptionalConvolution expansion(const OptionalTensor& weight, const OptionalTensor& scale,
                                     const OptionalTensor& bias, const std::string& activation) {
  FASTDW_CHECK(weight || (!scale && !bias),
               "expand_scale, expand_bias: given without expand_weight");
  return weight ? OptionalConvolution(Convolution{*weight, scale, bias, activation}) : std::nullopt;
}

struct Sliding {
  const IntList &stride, &padding, &dilation;
};

inline void check_scale_bias(const std::string& prefix, const Convolution& convolution) {
  const int64_t channels = convolution.weight.size(0);
  check_per_channel((prefix + "scale").c_str(), convolution.scale, channels);
  check_per_channel((prefix + "bias").c_str(), convolution.bias, channels);
}

inline void check_depthwise_conv(const Tensor& x, const Convolution& convolution) {
  const Tensor& weight = convolution.weight;
  check_images("x", x, true);
  check_depthwise_weight("weight", weight);
  check_weight_dtype("weight", weight, x);
  FASTDW_CHECK(weight.size(0) % x.size(1) == 0, "weight: expected a multiple of x's ", x.size(1),
               " channels, got ", weight.size(0));
  check_scale_bias("", convolution);
}

inline void check_residual(const OptionalTensor& residual, const Tensor& x, int64_t channels_out) {
  if (!residual) return;
  check_floating("residual", *residual, true);
  const IntList wanted{x.size(0), channels_out, x.size(2), x.size(3)};
  const auto sizes = residual->sizes();
  FASTDW_CHECK(IntList(sizes.begin(), sizes.end()) == wanted, "residual: expected ",
               shape_text(wanted), ", got ", shape_of(*residual));
  FASTDW_CHECK(residual->scalar_type() == x.scalar_type(), "residual: expected the dtype of x, ",
               dtype_name(x.scalar_type()), ", got ", dtype_name(residual->scalar_type()));
}

inline void check_pointwise_conv(const Tensor& x, const Convolution& convolution,
                                 const OptionalTensor& residual) {
  const Tensor& weight = convolution.weight;
  check_images("x", x, true);
  check_pointwise_weight("weight", weight);
  check_weight_dtype("weight", weight, x);
  FASTDW_CHECK(weight.size(1) == x.size(1), "weight: expected [", weight.size(0), ", ", x.size(1),
               ", 1, 1], got ", shape_of(weight), ": x has ", x.size(1), " channels");
  check_residual(residual, x, weight.size(0));
  check_scale_bias("", convolution);
}

inline void check_stem_conv(const Tensor& x, const Convolution& convolution) {
  const Tensor& weight = convolution.weight;
  check_images("x", x, true);
  check_dense_weight("weight", weight);
  check_weight_dtype("weight", weight, x);
  FASTDW_CHECK(weight.size(1) == x.size(1), "weight: expected [", weight.size(0), ", ", x.size(1),
               ", ", weight.size(2), ", ", weight.size(3), "], got ", shape_of(weight), ": x has ",
               x.size(1), " channels");
  check_scale_bias("", convolution);
}

// A block's last convolution, behind a depthwise one of so many channels.
inline void check_projection(const std::string& name, const Tensor& x,
                             const Convolution& convolution, int64_t channels_hidden) {
  const Tensor& weight = convolution.weight;
  const std::string argument = name + "_weight";
  check_pointwise_weight(argument.c_str(), weight);
  check_weight_dtype(argument.c_str(), weight, x);
  FASTDW_CHECK(weight.size(1) == channels_hidden, argument, ": expected [", weight.size(0), ", ",
               channels_hidden, ", 1, 1], got ", shape_of(weight));
  check_scale_bias(name + "_", convolution);
}

inline void check_separable_block(const Tensor& x, const Convolution& depthwise,
                                  const Convolution& pointwise) {
  const Tensor& weight = depthwise.weight;
  check_images("x", x, true);
  check_depthwise_weight("depthwise_weight", weight);
  check_weight_dtype("depthwise_weight", weight, x);
  FASTDW_CHECK(weight.size(0) == x.size(1), "depthwise_weight: expected [", x.size(1), ", 1, ",
               weight.size(2), ", ", weight.size(3), "], got ", shape_of(weight), ": x has ",
               x.size(1), " channels");
  check_scale_bias("depthwise_", depthwise);
  check_projection("pointwise", x, pointwise, x.size(1));
}

inline void check_inverted_residual(const Tensor& x, const OptionalConvolution& expand,
                                    const Convolution& depthwise, const Convolution& project) {
  check_images("x", x, true);
  const Tensor& weight = depthwise.weight;
  check_depthwise_weight("depthwise_weight", weight);
  check_weight_dtype("depthwise_weight", weight, x);
  const int64_t channels_hidden = weight.size(0);
  if (expand) {
    check_pointwise_weight("expand_weight", expand->weight);
    check_weight_dtype("expand_weight", expand->weight, x);
    FASTDW_CHECK(expand->weight.size(0) == channels_hidden, "expand_weight: expected [",
                 channels_hidden, ", ", x.size(1), ", 1, 1], got ", shape_of(expand->weight));
    check_scale_bias("expand_", *expand);
  }
  const Tensor& first = expand ? expand->weight : weight;
  const int64_t wanted = expand ? first.size(1) : channels_hidden;
  FASTDW_CHECK(wanted == x.size(1), expand ? "expand_weight" : "depthwise_weight",
               ": expected ", x.size(1), " input channels as x has, got ", shape_of(first));
  check_scale_bias("depthwise_", depthwise);
  check_projection("project", x, project, channels_hidden);
}

inline void check_classifier_head(const Tensor& x, const Tensor& weight,
                                  const OptionalTensor& bias) {
  check_images("x", x, true);
  check_floating("weight", weight, true);
  check_weight_dtype("weight", weight, x);
  FASTDW_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.size(1) == x.size(1),
               "weight: expected [channels_out, ", x.size(1), "], got ", shape_of(weight));
  check_per_channel("bias", bias, weight.size(0));
}

}  // namespace fastdw
