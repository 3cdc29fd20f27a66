// How the CUDA runtime names a kernel. tests/cuda_on_host has a header of the same name.
#pragma once

namespace fastdw::cuda {

template <class Params>
const void* kernel_address(void (*kernel)(Params)) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace fastdw::cuda
