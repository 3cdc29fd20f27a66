// A launch as data: what csrc/cuda puts on a stream, or makes a node of a CUDA graph. Every kernel
// takes one struct by value.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <type_traits>

#include "kernels/cuda/kernel_address.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

constexpr size_t kMaxParamsBytes = 512;

// Thread blocks that wait for one another count themselves in at the start of the workspace, the
// same place in every op: launches after one another may share it, zeroed once.
constexpr size_t kCounterBytes = 4096;
constexpr int64_t kMaxCounters = kCounterBytes / sizeof(unsigned);

struct KernelLaunch {
  const char* name;  // for people: the kernel and the tiling
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  alignas(16) unsigned char params[kMaxParamsBytes];
};

template <class Params>
KernelLaunch make_launch(const char* name, void (*kernel)(Params), dim3 grid, unsigned threads,
                         size_t shared_bytes, const Params& params) {
  static_assert(std::is_trivially_copyable_v<Params>, "a kernel's parameters are plain data");
  static_assert(sizeof(Params) <= kMaxParamsBytes, "a kernel's parameters do not fit");
  KernelLaunch launch{name, kernel_address(kernel), grid, dim3(threads), shared_bytes, {}};
  std::memcpy(launch.params, &params, sizeof(Params));
  return launch;
}

// The launches of one op, in order. workspace_bytes: scratch that all may use, to be zeroed once.
struct LaunchList {
  static constexpr int kMost = 4;
  KernelLaunch launches[kMost];
  int count = 0;
  size_t workspace_bytes = 0;

  void add(const KernelLaunch& launch) { launches[count++] = launch; }
};

// More than 48 KiB of dynamic shared memory must be asked for, a kernel and device. What was
// allowed is never lowered: a node of a graph, or another thread's launch, may need it.
inline cudaError_t allow_shared_bytes(const KernelLaunch& launch) {
  if (launch.shared_bytes <= 48 * 1024) return cudaSuccess;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const int wanted = static_cast<int>(launch.shared_bytes);
  cudaFuncAttributes known{};
  const cudaError_t asked = cudaFuncGetAttributes(&known, launch.kernel);
  if (asked != cudaSuccess || known.maxDynamicSharedSizeBytes >= wanted) return asked;
  return cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, wanted);
}

inline cudaError_t run(const KernelLaunch& launch, cudaStream_t stream) {
  const cudaError_t allowed = allow_shared_bytes(launch);
  if (allowed != cudaSuccess) return allowed;
  void* arguments[] = {const_cast<unsigned char*>(launch.params)};
  return cudaLaunchKernel(launch.kernel, launch.grid, launch.block, arguments,
                          launch.shared_bytes, stream);
}

}  // namespace fastdw::cuda
