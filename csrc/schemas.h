// The schemas of the ops that have kernels on several devices. Activations are named none, relu,
// relu6, hardswish or silu. stride and dilation: vertical, horizontal. padding: left, right, top,
// bottom, or the empty list for TensorFlow's SAME.
#pragma once

namespace fastdw {

constexpr const char* kOpSchemas[] = {
    "depthwise_conv(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, str activation) -> Tensor",
    "depthwise_conv_pooled(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, str activation) -> (Tensor, Tensor)",
    "pointwise_conv(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, "
    "str activation) -> Tensor",
    "stem_conv(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int[] stride, "
    "int[] padding, str activation) -> Tensor",
    "separable_block(Tensor x, Tensor depthwise_weight, Tensor? depthwise_scale, "
    "Tensor? depthwise_bias, Tensor pointwise_weight, Tensor? pointwise_scale, "
    "Tensor? pointwise_bias, int[] stride, int[] padding, int[] dilation, "
    "str depthwise_activation, str pointwise_activation) -> Tensor",
    "inverted_residual(Tensor x, Tensor? expand_weight, Tensor? expand_scale, "
    "Tensor? expand_bias, Tensor depthwise_weight, Tensor? depthwise_scale, "
    "Tensor? depthwise_bias, Tensor project_weight, Tensor? project_scale, "
    "Tensor? project_bias, int[] stride, int[] padding, int[] dilation, bool residual, "
    "str expand_activation, str depthwise_activation, str project_activation) -> Tensor",
    "classifier_head(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "planned_network(Tensor x, Tensor packed, str program) -> Tensor[]",
};

}  // namespace fastdw
