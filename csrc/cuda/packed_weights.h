// Weights of a planned network on CUDA: a header of 64 bytes, then a blob per step at the offset
// that the program names. A blob holds its convolutions in the order expand, depthwise, pointwise,
// each the weight in torch's own layout and the network's dtype, batch norm's scale multiplied in,
// and then its bias (fp32, a linear layer's in the dtype). Every part begins at a multiple of 64
// bytes. fastdw/plan/packed_layout.py writes it.
#pragma once

#include <cstdint>

#include "csrc/network_program.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

constexpr int64_t kPlanHeaderBytes = 64;

struct ConvWeights {
  const void* weight = nullptr;
  const void* bias = nullptr;
};

struct StepWeights {
  ConvWeights expand, depthwise, pointwise;  // pointwise: also a stem's and a linear layer's
};

// The parts of a step's blob; with packed null the pointers are offsets. Throws if the blob does
// not end within `available` bytes.
StepWeights find_step_weights(const ProgramStep& step, DType dtype, const uint8_t* packed,
                              int64_t available);

}  // namespace fastdw::cuda
