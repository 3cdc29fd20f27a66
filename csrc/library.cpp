// The ops of the namespace fastdw: every schema (those with kernels on several devices in csrc/schemas.h), once, with its CPU
// implementation, and the control functions that fastdw/native.py calls through ctypes.
#include <torch/csrc/stable/library.h>

#include "csrc/cpu/ops.h"
#include "csrc/packing.h"
#include "csrc/schemas.h"
#include "kernels/cpu/dispatch.h"

#define FASTDW_EXPORT extern "C" __attribute__((visibility("default")))

STABLE_TORCH_LIBRARY(fastdw, m) {
  for (const char* schema : fastdw::kOpSchemas) m.def(schema);

  m.def("pack_depthwise_conv(Tensor weight, Tensor? scale, Tensor? bias) -> Tensor");
  m.def("pack_pointwise_conv(Tensor weight, Tensor? scale, Tensor? bias) -> Tensor");
  m.def("pack_stem_conv(Tensor weight, Tensor? scale, Tensor? bias) -> Tensor");
  m.def(
      "pack_separable_block(Tensor depthwise_weight, Tensor? depthwise_scale, "
      "Tensor? depthwise_bias, Tensor pointwise_weight, Tensor? pointwise_scale, "
      "Tensor? pointwise_bias) -> Tensor");
  m.def(
      "pack_inverted_residual(Tensor? expand_weight, Tensor? expand_scale, Tensor? expand_bias, "
      "Tensor depthwise_weight, Tensor? depthwise_scale, Tensor? depthwise_bias, "
      "Tensor project_weight, Tensor? project_scale, Tensor? project_bias) -> Tensor");
  m.def("pack_classifier_head(Tensor weight, Tensor? bias) -> Tensor");

  m.def(
      "depthwise_conv_packed(Tensor x, Tensor packed, int channels_out, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, str activation, bool channels_last) -> Tensor");
  m.def(
      "depthwise_conv_pooled_packed(Tensor x, Tensor packed, int channels_out, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, str activation, bool channels_last) -> "
      "(Tensor, Tensor)");
  m.def(
      "pointwise_conv_packed(Tensor x, Tensor packed, int channels_out, Tensor? residual, "
      "str activation, bool channels_last) -> Tensor");
  m.def(
      "stem_conv_packed(Tensor x, Tensor packed, int channels_out, int[] kernel_size, "
      "int[] stride, int[] padding, str activation, bool channels_last) -> Tensor");
  m.def(
      "separable_block_packed(Tensor x, Tensor packed, int channels_out, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, str depthwise_activation, "
      "str pointwise_activation, bool channels_last) -> Tensor");
  m.def(
      "inverted_residual_packed(Tensor x, Tensor packed, int channels_out, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, bool residual, str expand_activation, "
      "str depthwise_activation, str project_activation, bool channels_last) -> Tensor");
  m.def("classifier_head_packed(Tensor x, Tensor packed, int channels_out) -> Tensor");

  // For fastdw.benchmark: they look at planned networks and at the machine.
  m.def("profile_network(Tensor x, Tensor packed, str program, int runs) -> Tensor");
  m.def("explain_network(str program, int batch, int height, int width, int threads) -> str");
  m.def("measure_peak(int threads, float seconds) -> Tensor");
  m.def("measure_bandwidth(int threads, int bytes, float seconds) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastdw, CPU, m) {
  m.impl("depthwise_conv", TORCH_BOX(&fastdw::depthwise_conv));
  m.impl("depthwise_conv_pooled", TORCH_BOX(&fastdw::depthwise_conv_pooled));
  m.impl("pointwise_conv", TORCH_BOX(&fastdw::pointwise_conv));
  m.impl("stem_conv", TORCH_BOX(&fastdw::stem_conv));
  m.impl("separable_block", TORCH_BOX(&fastdw::separable_block));
  m.impl("inverted_residual", TORCH_BOX(&fastdw::inverted_residual));
  m.impl("classifier_head", TORCH_BOX(&fastdw::classifier_head));

  m.impl("pack_depthwise_conv", TORCH_BOX(&fastdw::pack_depthwise_conv));
  m.impl("pack_pointwise_conv", TORCH_BOX(&fastdw::pack_pointwise_conv));
  m.impl("pack_stem_conv", TORCH_BOX(&fastdw::pack_stem_conv));
  m.impl("pack_separable_block", TORCH_BOX(&fastdw::pack_separable_block));
  m.impl("pack_inverted_residual", TORCH_BOX(&fastdw::pack_inverted_residual));
  m.impl("pack_classifier_head", TORCH_BOX(&fastdw::pack_classifier_head));

  m.impl("depthwise_conv_packed", TORCH_BOX(&fastdw::depthwise_conv_packed));
  m.impl("depthwise_conv_pooled_packed", TORCH_BOX(&fastdw::depthwise_conv_pooled_packed));
  m.impl("pointwise_conv_packed", TORCH_BOX(&fastdw::pointwise_conv_packed));
  m.impl("stem_conv_packed", TORCH_BOX(&fastdw::stem_conv_packed));
  m.impl("separable_block_packed", TORCH_BOX(&fastdw::separable_block_packed));
  m.impl("inverted_residual_packed", TORCH_BOX(&fastdw::inverted_residual_packed));
  m.impl("classifier_head_packed", TORCH_BOX(&fastdw::classifier_head_packed));

  m.impl("planned_network", TORCH_BOX(&fastdw::planned_network));
  m.impl("profile_network", TORCH_BOX(&fastdw::profile_network));
}

// No tensor among the arguments tells the device.
STABLE_TORCH_LIBRARY_IMPL(fastdw, CompositeExplicitAutograd, m) {
  m.impl("explain_network", TORCH_BOX(&fastdw::explain_network));
  m.impl("measure_peak", TORCH_BOX(&fastdw::measure_peak));
  m.impl("measure_bandwidth", TORCH_BOX(&fastdw::measure_bandwidth));
}

FASTDW_EXPORT const char* fastdw_built_with_torch() { return FASTDW_BUILT_WITH_TORCH; }

FASTDW_EXPORT const char* fastdw_isa_names() {
  static const std::string names = [] {
    std::string joined;
    for (const char* isa : fastdw::kCpuIsaNames)
      joined += (joined.empty() ? "" : ",") + std::string(isa);
    return joined;
  }();
  return names.c_str();
}

FASTDW_EXPORT const char* fastdw_active_isa() { return fastdw::active_cpu_isa(); }

FASTDW_EXPORT int fastdw_isa_is_supported(const char* isa) {
  return fastdw::cpu_isa_is_supported(isa);
}

// 0 where the switch was made.
FASTDW_EXPORT int fastdw_set_isa(const char* isa) { return fastdw::set_cpu_isa(isa) ? 0 : 1; }
