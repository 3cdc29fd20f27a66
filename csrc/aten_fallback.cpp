#include "csrc/aten_fallback.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "csrc/params_from_tensors.h"

namespace fastdw::aten {
namespace {

template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor per_channel(const Tensor& values) {
  return torch::stable::reshape(values, {1, values.size(0), 1, 1});
}

Tensor activate(const Tensor& x, const std::string& activation) {
  switch (parse_activation("activation", activation)) {
    case Activation::none: return x;
    case Activation::relu: return call("aten::relu", "", x);
    case Activation::relu6: return call("aten::relu6", "", x);
    case Activation::hardswish: return call("aten::hardswish", "", x);
    case Activation::silu: return call("aten::silu", "", x);
    case Activation::hardsigmoid:
    case Activation::sigmoid: break;  // gates: no op takes them
  }
  return x;
}

// The dispatcher call takes no Scalar argument, which aten::add has; this is a - (-1) * b.
Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

Tensor convolve(const Tensor& x, const Convolution& convolution, const Sliding& sliding,
                int64_t groups) {
  const auto& [stride, padding, dilation] = sliding;
  const auto& [weight, scale, bias, activation] = convolution;
  const Sampling sampling =
      sampling_of(x.size(2), x.size(3), weight.size(2), weight.size(3), stride, padding, dilation);
  const Window& window = sampling.window;
  const auto after = [](int64_t size_out, int64_t step, int64_t reach, int64_t size,
                        int64_t before) {
    return std::max<int64_t>((size_out - 1) * step + reach - size - before, 0);
  };
  const int64_t right =
      after(sampling.width_out, window.stride_w, window.dilation_w * (window.kernel_w - 1) + 1,
            x.size(3), window.pad_left);
  const int64_t below =
      after(sampling.height_out, window.stride_h, window.dilation_h * (window.kernel_h - 1) + 1,
            x.size(2), window.pad_top);
  const IntList pads{window.pad_left, right, window.pad_top, below};
  const bool pads_any = std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad > 0; });
  const Tensor padded = pads_any ? torch::stable::pad(x, pads, "constant", 0.0) : x;
  const IntList zeros{0, 0};
  Tensor y = call("aten::convolution", "", padded, weight, OptionalTensor(), stride, zeros,
                  dilation, false, zeros, groups);
  if (scale) y = call("aten::mul", "Tensor", y, per_channel(*scale));
  if (bias) y = add(y, per_channel(*bias));
  return activate(y, activation);
}

Tensor convolve_1x1(const Tensor& x, const Convolution& convolution) {
  const IntList ones{1, 1}, none{0, 0, 0, 0};
  return convolve(x, convolution, {ones, none, ones}, 1);
}

Tensor in_layout(const Tensor& y, bool channels_last) {
  return torch::stable::contiguous(
      y, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace

Tensor depthwise_conv(const Tensor& x, const Convolution& convolution, const Sliding& sliding) {
  return in_layout(convolve(x, convolution, sliding, x.size(1)),
                   is_channels_last_result(x, suggests_channels_last(convolution.weight)));
}

Tensor pointwise_conv(const Tensor& x, const Convolution& convolution,
                      const OptionalTensor& residual) {
  const Tensor y = convolve_1x1(x, convolution);
  return in_layout(residual ? add(y, *residual) : y,
                   is_channels_last_result(x, suggests_channels_last(convolution.weight)));
}

Tensor stem_conv(const Tensor& x, const Convolution& convolution, const Sliding& sliding) {
  return in_layout(convolve(x, convolution, sliding, 1),
                   is_channels_last_result(x, suggests_channels_last(convolution.weight)));
}

Tensor block(const Tensor& x, const OptionalConvolution& expand, const Convolution& depthwise,
             const Convolution& project, const Sliding& sliding, bool residual) {
  const bool channels_last =
      is_channels_last_result(x, (expand && suggests_channels_last(expand->weight)) ||
                                     suggests_channels_last(depthwise.weight) ||
                                     suggests_channels_last(project.weight));
  const Tensor expanded = expand ? convolve_1x1(x, *expand) : x;
  const Tensor hidden = convolve(expanded, depthwise, sliding, depthwise.weight.size(0));
  const Tensor y = convolve_1x1(hidden, project);
  FASTDW_CHECK(!residual || shape_of(y) == shape_of(x), "residual: x ", shape_of(x),
               " and the result ", shape_of(y), " differ in shape");
  return in_layout(residual ? add(y, x) : y, channels_last);
}

Tensor means_of_images(const Tensor& x) {
  const IntList image_dims{2, 3};
  return call("aten::mean", "dim", x, std::optional<IntList>(image_dims), false,
              std::optional<ScalarType>());
}

Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Tensor pooled = means_of_images(x);
  const OptionalTensor added =
      bias ? OptionalTensor(torch::stable::to(*bias, ScalarType::Double)) : std::nullopt;
  return call("aten::linear", "", pooled, weight, added);
}

}  // namespace fastdw::aten
