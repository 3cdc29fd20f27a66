// The ops of csrc/cuda/library.cpp, defined a second time, for the kernels that run on the host.
#include "csrc/schemas.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastdw_cuda_on_host, m) {
  for (const char* schema : fastdw::kOpSchemas) m.def(schema);
}
