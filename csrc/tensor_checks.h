// What memory safety asks of tensors, with messages that name the argument. Python checks first and
// raises ValueError or TypeError; these are the last line and always raise RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/params.h"

namespace fastdw {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using IntList = std::vector<int64_t>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// The message is made only on failure.
#define FASTDW_CHECK(condition, ...)                                    \
  do {                                                                  \
    if (__builtin_expect(!(condition), 0)) ::fastdw::fail(__VA_ARGS__); \
  } while (false)

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '[';
  const char* separator = "";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << ']';
  return text.str();
}

// No machine holds so many floats, and sums of thousands of such counts still fit in 64 bits.
constexpr int64_t kMostFloats = int64_t{1} << 48;

// The product of sizes, refused beyond kMostFloats; `what` begins the message.
inline int64_t checked_product(const char* what, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    FASTDW_CHECK(!__builtin_mul_overflow(product, factor, &product) && product <= kMostFloats, what,
                 ": the size ", shape_text(factors), " is too large");
  return product;
}

inline std::string shape_of(const Tensor& tensor) { return shape_text(tensor.sizes()); }

inline bool is_half(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

inline const char* dtype_name(ScalarType dtype) { return torch::headeronly::toString(dtype); }

// Where a library's tensors lie; what is compiled into _C_cuda.so defines FASTDW_TENSORS_ON_CUDA.
#ifdef FASTDW_TENSORS_ON_CUDA
constexpr const char* kDeviceName = "CUDA";
inline bool is_on_device(const Tensor& tensor) { return tensor.is_cuda(); }
#else
constexpr const char* kDeviceName = "CPU";
inline bool is_on_device(const Tensor& tensor) { return tensor.is_cpu(); }
#endif

// A strided tensor of real floating point on the device; fp64 only where the caller says so.
inline void check_floating(const char* name, const Tensor& tensor, bool allow_double) {
  FASTDW_CHECK(is_on_device(tensor), name, ": expected a ", kDeviceName, " tensor");
  int32_t layout;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  FASTDW_CHECK(layout == aoti_torch_layout_strided(), name, ": expected a strided tensor");
  const ScalarType dtype = tensor.scalar_type();
  FASTDW_CHECK(
      dtype == ScalarType::Float || is_half(dtype) || (allow_double && dtype == ScalarType::Double),
      name, ": expected dtype Float, Half", allow_double ? ", BFloat16 or Double" : " or BFloat16",
      ", got ", dtype_name(dtype));
}

// x of an op: [batch, channels, height, width] with something in each image; the batch may be
// empty.
inline void check_images(const char* name, const Tensor& x, bool allow_double) {
  check_floating(name, x, allow_double);
  FASTDW_CHECK(x.dim() == 4, name, ": expected [batch, channels, height, width], got ",
               shape_of(x));
  FASTDW_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, name,
               ": expected at least one channel, row and column, got ", shape_of(x));
}

// weight: of x's dtype, or fp32 with a half-precision x.
inline void check_weight_dtype(const char* name, const Tensor& weight, const Tensor& x) {
  const ScalarType dtype = weight.scalar_type(), wanted = x.scalar_type();
  FASTDW_CHECK(dtype == wanted || (dtype == ScalarType::Float && is_half(wanted)), name,
               ": expected the dtype of x, ", dtype_name(wanted), ", got ", dtype_name(dtype));
}

// scale or bias of a convolution: [channels] or absent.
inline void check_per_channel(const char* name, const OptionalTensor& values, int64_t channels) {
  if (!values) return;
  check_floating(name, *values, true);
  FASTDW_CHECK(values->dim() == 1 && values->size(0) == channels, name, ": expected [", channels,
               "], got ", shape_of(*values));
}

inline void check_depthwise_weight(const char* name, const Tensor& weight) {
  check_floating(name, weight, true);
  FASTDW_CHECK(weight.dim() == 4, name, ": expected [channels, 1, kernel_h, kernel_w], got ",
               shape_of(weight));
  FASTDW_CHECK(weight.size(1) == 1, name, ": expected [", weight.size(0), ", 1, ", weight.size(2),
               ", ", weight.size(3), "], got ", shape_of(weight), ": not a depthwise filter");
  FASTDW_CHECK(weight.numel() > 0, name, ": expected a filter that is not empty, got ",
               shape_of(weight));
}

inline void check_dense_weight(const char* name, const Tensor& weight) {
  check_floating(name, weight, true);
  FASTDW_CHECK(weight.dim() == 4 && weight.numel() > 0, name,
               ": expected [channels_out, channels_in, kernel_h, kernel_w], got ",
               shape_of(weight));
}

inline void check_pointwise_weight(const char* name, const Tensor& weight) {
  check_dense_weight(name, weight);
  FASTDW_CHECK(weight.size(2) == 1 && weight.size(3) == 1, name, ": expected [", weight.size(0),
               ", ", weight.size(1), ", 1, 1], got ", shape_of(weight), ": not a 1x1 filter");
}

inline Activation parse_activation(const char* argument, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "hardswish") return Activation::hardswish;
  if (name == "silu") return Activation::silu;
  fail(argument, ": expected none, relu, relu6, hardswish or silu, got \"", name, "\"");
}

// What a linear layer may end in: it may compute the gates of a squeeze-excite.
inline Activation parse_linear_activation(const char* argument, const std::string& name) {
  if (name == "hardsigmoid") return Activation::hardsigmoid;
  if (name == "sigmoid") return Activation::sigmoid;
  return parse_activation(argument, name);
}

// torch's suggest_memory_format() == channels_last (c10 is_channels_last_strides_2d), ambiguous
// strides included.
inline bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t smallest = 0;
  for (const int dim : {1, 3, 2, 0}) {
    if (sizes[dim] == 0 || strides[dim] < smallest) return false;
    if (dim == 0 && smallest == strides[1]) return false;
    smallest = strides[dim] * (sizes[dim] > 1 ? sizes[dim] : 1);
  }
  return true;
}

// Whether the elements lie in memory as [batch, height, width, channels] without gaps.
inline bool is_dense_nhwc(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

}  // namespace fastdw
