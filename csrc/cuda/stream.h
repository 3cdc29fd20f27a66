// What needs libtorch_cuda. tests/cuda_on_host has a header of the same name.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fastdw::cuda {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline int32_t device_index(const torch::stable::Tensor& tensor) {
  return tensor.get_device_index();
}

inline cudaStream_t current_stream(int32_t device_index) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fastdw::cuda
