// The ops composed from aten ops, for the dtype that the kernels lack (fp64), so that gradcheck and
// opcheck reach the registered ops. Arguments are checked before; results have the op's layout.
#pragma once

#include "csrc/op_checks.h"

namespace fastdw::aten {

inline bool is_needed(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

Tensor depthwise_conv(const Tensor& x, const Convolution& convolution, const Sliding& sliding);
// [batch, channels]: the mean of each channel of each image.
Tensor means_of_images(const Tensor& x);
Tensor pointwise_conv(const Tensor& x, const Convolution& convolution,
                      const OptionalTensor& residual);
Tensor stem_conv(const Tensor& x, const Convolution& convolution, const Sliding& sliding);
Tensor block(const Tensor& x, const OptionalConvolution& expand, const Convolution& depthwise,
             const Convolution& project, const Sliding& sliding, bool residual);
Tensor classifier_head(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);

}  // namespace fastdw::aten
