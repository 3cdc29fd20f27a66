#include "tests/cuda_on_host/executor/runtime.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "tests/cuda_on_host/executor/block.h"
#include "tests/cuda_on_host/executor/counters.h"
#include "tests/cuda_on_host/include/kernels/cuda/kernel_address.h"

namespace fastdw::host {

const std::vector<DeviceKind> device_kinds = {
    {"A100", 108, 2048, 164 * 1024, 163 * 1024, 40 << 20, 8, 0},
    {"H100", 132, 2048, 228 * 1024, 227 * 1024, 50 << 20, 9, 0},
    {"RTX 4090", 128, 1536, 100 * 1024, 99 * 1024, 72 << 20, 8, 9},
};
bool streams_are_capturing = false;

namespace {

constexpr int kSharedWithoutAsking = 48 * 1024;

struct Kernel {
  Body body;
  size_t params_bytes;
  std::map<int, int> shared_bytes;  // by device, where more was asked for
};

std::recursive_mutex mutex;
int chosen = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaError_t described_error = cudaSuccess;
thread_local std::string description;  // of described_error

std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> known;
  return known;
}

const char* plain_text(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}

bool is_possible(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= kMostThreads && block.z <= 64 && grid.x > 0 && grid.y > 0 &&
         grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 0xffffu && grid.z <= 0xffffu;
}

}  // namespace

bool choose_device_kind(const std::string& name) {
  for (size_t i = 0; i < device_kinds.size(); ++i) {
    if (name != device_kinds[i].name) continue;
    chosen = static_cast<int>(i);
    return true;
  }
  return false;
}

cudaError_t note_error(cudaError_t error, const std::string& text) {
  if (error != cudaSuccess) {
    last_error = error;
    described_error = error;
    description = plain_text(error);
    if (!text.empty()) description += ": " + text;
  }
  return error;
}

void know_kernel(const void* kernel, Body body, size_t params_bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  kernels().insert({kernel, {body, params_bytes, {}}});
}

size_t params_bytes_of(const void* kernel) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto found = kernels().find(kernel);
  return found == kernels().end() ? 0 : found->second.params_bytes;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, const void* params,
                   size_t shared_bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return note_error(cudaErrorInvalidDeviceFunction);
  if (!is_possible(grid, block)) return note_error(cudaErrorInvalidConfiguration);
  const auto allowed = found->second.shared_bytes.find(chosen);
  const int most =
      allowed == found->second.shared_bytes.end() ? kSharedWithoutAsking : allowed->second;
  if (shared_bytes > static_cast<size_t>(most))
    return note_error(cudaErrorInvalidValue, "more dynamic shared memory than asked for");
  try {
    execute({found->second.body, kernel, params, grid, block, shared_bytes});
  } catch (const KernelError& error) {
    return note_error(cudaErrorLaunchFailure, error.what());
  }
  return cudaSuccess;
}

}  // namespace fastdw::host

using namespace fastdw::host;

const char* cudaGetErrorString(cudaError_t error) {
  return error == described_error ? description.c_str() : plain_text(error);
}

const char* cudaGetErrorName(cudaError_t error) { return plain_text(error); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(device_kinds.size());
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = chosen;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= static_cast<int>(device_kinds.size()))
    return note_error(cudaErrorInvalidDevice);
  chosen = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= static_cast<int>(device_kinds.size()))
    return note_error(cudaErrorInvalidDevice);
  const DeviceKind& kind = device_kinds[device];
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedWithoutAsking; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = kind.multiprocessors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = kind.l2_bytes; return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kind.threads_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = kind.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = kind.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kind.shared_bytes_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kind.shared_bytes_per_block;
      return cudaSuccess;
  }
  return note_error(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = streams_are_capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return streams_are_capturing ? note_error(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  constexpr size_t kAlignment = 256;
  *pointer = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  return *pointer == nullptr && bytes != 0 ? note_error(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return cudaMalloc(pointer, bytes);
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return note_error(cudaErrorInvalidDeviceFunction);
  const auto allowed = found->second.shared_bytes.find(chosen);
  attributes->maxDynamicSharedSizeBytes =
      allowed == found->second.shared_bytes.end() ? kSharedWithoutAsking : allowed->second;
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return note_error(cudaErrorInvalidDeviceFunction);
  if (value > device_kinds[chosen].shared_bytes_per_block)
    return note_error(cudaErrorInvalidValue, "more shared memory than a block may have");
  found->second.shared_bytes[chosen] = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  return launch(kernel, grid, block, arguments[0], shared_bytes);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  fastdw::host::early_launches += config->numAttrs > 0;
  return launch(kernel, config->gridDim, config->blockDim, arguments[0], config->dynamicSmemBytes);
}
