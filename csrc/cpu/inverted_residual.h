// The call that inverted_residual and separable_block share: both run the inverted_residual kernel.
#pragma once

#include <string>

#include "csrc/packing.h"

namespace fastdw {

struct BlockCall {
  BlobKind kind;
  BlobShape shape;
  const IntList &stride, &padding, &dilation;
  bool residual;
  Activation expand_activation, depthwise_activation, project_activation;
  bool channels_last;  // whether a weight was
};

Tensor run_block(const Tensor& x, const Tensor& packed, const BlockCall& call);

}  // namespace fastdw
