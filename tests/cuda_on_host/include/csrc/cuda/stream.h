// In place of csrc/cuda/stream.h: CPU tensors, the device that the stub of the runtime plays, its
// default stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fastdw::cuda {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline int32_t device_index(const torch::stable::Tensor&) {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

inline cudaStream_t current_stream(int32_t) { return nullptr; }

}  // namespace fastdw::cuda
