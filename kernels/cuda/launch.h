// A launch as data: what csrc/cuda puts on a stream, or makes a node of a CUDA graph. Every kernel
// takes one struct by value.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "kernels/cuda/kernel_address.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

constexpr size_t kMaxParamsBytes = 512;

// Thread blocks that wait for one another count themselves in. The counters are zeroed once: a
// kernel leaves them so, and launches after one another may share them.
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

// The launches of one op, in order. workspace_bytes: scratch that all may use. counts: whether they
// use counters. cycles: what the planner expects them to take, where it has a model.
struct LaunchList {
  static constexpr int kMost = 4;
  KernelLaunch launches[kMost];
  int count = 0;
  size_t workspace_bytes = 0;
  bool counts = false;
  double cycles = 0;

  void add(const KernelLaunch& launch) { launches[count++] = launch; }
};

// Makes the current device ready for a launch. More than 48 KiB of dynamic shared memory must be
// asked for; what was allowed is never lowered: a node of a graph, or another thread's launch, may
// need it. waits: whether the kernel's machine code waits for the launch in front of it by itself
// (wait_for_previous_launch in ptx.cuh), so that it may begin before that one has ended.
inline cudaError_t prepare(const KernelLaunch& launch, bool& waits) {
  static std::mutex mutex;
  static auto* known = new std::map<std::pair<int, const void*>, cudaFuncAttributes>;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known->try_emplace({device, launch.kernel});
  cudaFuncAttributes& attributes = found->second;
  if (is_new) error = cudaFuncGetAttributes(&attributes, launch.kernel);
  const int wanted = static_cast<int>(launch.shared_bytes);
  if (error == cudaSuccess && wanted > 48 * 1024 && attributes.maxDynamicSharedSizeBytes < wanted) {
    attributes.maxDynamicSharedSizeBytes = wanted;
    error =
        cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, wanted);
  }
  waits = attributes.ptxVersion >= 90;
  if (error != cudaSuccess) known->erase(found);
  return error;
}

// may_begin_early: before the launch in front has ended, if the kernel waits for that by itself.
inline cudaError_t run(const KernelLaunch& launch, cudaStream_t stream,
                       bool may_begin_early = true) {
  bool waits = false;
  const cudaError_t prepared = prepare(launch, waits);
  if (prepared != cudaSuccess) return prepared;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = waits && may_begin_early ? 1 : 0;
  void* arguments[] = {const_cast<unsigned char*>(launch.params)};
  return cudaLaunchKernelExC(&config, launch.kernel, arguments);
}

}  // namespace fastdw::cuda
