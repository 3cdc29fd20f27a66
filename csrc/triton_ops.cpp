// The schemas of the ops on Triton's kernels (fastdw/ops/triton_backend.py). In a process without
// Python, say a model compiled by AOTInductor and loaded in C++, they refuse with the reason.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "csrc/schemas.h"

namespace fastdw {
namespace {

void refuse(StableIValue*, uint64_t, uint64_t) {
  STD_TORCH_CHECK(false,
                  "fastdw_triton: Triton's kernels are launched by Python, and no Python is here "
                  "that has imported fastdw: export a model that runs on the backend cpp");
}

constexpr const char* kGradientSchemas[] = {
    "depthwise_conv_input_grad(Tensor grad, Tensor weight, SymInt[] x_size, int[] stride, "
    "int[] padding, int[] dilation) -> Tensor",
    "depthwise_conv_weight_grad(Tensor grad, Tensor x, SymInt[] weight_size, int[] stride, "
    "int[] padding, int[] dilation) -> Tensor",
};

constexpr const char* kNames[] = {
    "depthwise_conv",    "depthwise_conv_pooled",     "pointwise_conv",
    "stem_conv",         "separable_block",           "inverted_residual",
    "classifier_head",   "planned_network",           "depthwise_conv_input_grad",
    "depthwise_conv_weight_grad",
};
static_assert(std::size(kNames) == std::size(kOpSchemas) + std::size(kGradientSchemas));

}  // namespace
}  // namespace fastdw

STABLE_TORCH_LIBRARY(fastdw_triton, m) {
  for (const char* schema : fastdw::kOpSchemas) m.def(schema);
  for (const char* schema : fastdw::kGradientSchemas) m.def(schema);
}

// Python registers its own for CPU and CUDA, which come first.
STABLE_TORCH_LIBRARY_IMPL(fastdw_triton, CompositeExplicitAutograd, m) {
  for (const char* name : fastdw::kNames) m.impl(name, &fastdw::refuse);
}
