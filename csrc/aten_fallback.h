// Convolution and classifier composed from aten ops, for the dtype that the kernels lack (fp64), so
// that gradcheck and opcheck reach the registered ops.
#pragma once

#include <string>

#include "csrc/tensor_checks.h"

namespace fastdw::aten {

inline bool is_needed(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

struct Convolution {
  const Tensor& weight;
  const OptionalTensor &scale, &bias;
  const std::string& activation;
};

// act(scale * conv(x) + bias); padding as in the schemas.
Tensor convolve(const Tensor& x, const Convolution& convolution, const IntList& stride,
                const IntList& padding, const IntList& dilation, int64_t groups);
Tensor convolve_1x1(const Tensor& x, const Convolution& convolution);
Tensor add(const Tensor& a, const Tensor& b);
Tensor classify(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);

// y in the layout that the op promises.
Tensor in_layout(const Tensor& y, bool channels_last);

}  // namespace fastdw::aten
