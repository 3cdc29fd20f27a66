// A new tensor straight from its allocator. torch::stable::empty is a boxed call through torch's
// dispatcher: some 30 functions more, each of them a miss of the caches and the TLB where a network
// has just filled them with its weights (20 us of the 450 of MobileNet V2 0.35-96).
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>

#include "csrc/tensor_checks.h"

namespace fastdw {

// Dense in the order of `sizes` or, channels_last, in that of [batch, height, width, channels].
inline Tensor new_tensor(const IntList& sizes, ScalarType dtype, bool channels_last = false,
                         torch::stable::Device device = torch::headeronly::DeviceType::CPU) {
  IntList strides(sizes.size());
  int64_t stride = 1;
  const auto lay_out = [&](size_t dim) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);  // as torch where a size is 0
  };
  if (channels_last) lay_out(1);
  for (size_t dim = sizes.size(); dim-- > 0;)
    if (!channels_last || dim != 1) lay_out(dim);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(dtype),
      static_cast<int32_t>(device.type()), device.index(), &handle));
  return Tensor(handle);
}

}  // namespace fastdw
