// The CUDA implementations of the ops of fastdw/_C.so, which defines their schemas and must be
// loaded first, and what fastdw/native.py calls through ctypes. tests/cuda_on_host registers the
// same functions under another name, for CPU tensors.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/device.h"
#include "csrc/cuda/ops.h"

#ifndef FASTDW_CUDA_NAMESPACE
#define FASTDW_CUDA_NAMESPACE fastdw
#define FASTDW_CUDA_KEY CUDA
#endif
#ifndef FASTDW_CUDA_TARGETS
#define FASTDW_CUDA_TARGETS ""
#endif
#define FASTDW_EXPORT extern "C" __attribute__((visibility("default")))

STABLE_TORCH_LIBRARY_IMPL(FASTDW_CUDA_NAMESPACE, FASTDW_CUDA_KEY, m) {
  m.impl("depthwise_conv", TORCH_BOX(&fastdw::cuda::depthwise_conv));
  m.impl("pointwise_conv", TORCH_BOX(&fastdw::cuda::pointwise_conv));
  m.impl("stem_conv", TORCH_BOX(&fastdw::cuda::stem_conv));
  m.impl("separable_block", TORCH_BOX(&fastdw::cuda::separable_block));
  m.impl("inverted_residual", TORCH_BOX(&fastdw::cuda::inverted_residual));
  m.impl("classifier_head", TORCH_BOX(&fastdw::cuda::classifier_head));
  m.impl("planned_network", TORCH_BOX(&fastdw::cuda::planned_network));
}

// 13000 for 13.0: the runtime that is linked in.
FASTDW_EXPORT int fastdw_cuda_version() { return CUDART_VERSION; }

// The architectures compiled for, ascending, by spaces: "8.0 9.0".
FASTDW_EXPORT const char* fastdw_cuda_targets() { return FASTDW_CUDA_TARGETS; }

FASTDW_EXPORT void fastdw_cuda_set_tf32_question(int (*question)()) {
  fastdw::cuda::set_tf32_question(question);
}
