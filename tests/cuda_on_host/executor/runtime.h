// State of the stubbed CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace fastdw::host {

struct DeviceKind {
  const char* name;
  int multiprocessors, threads_per_multiprocessor;
  int shared_bytes_per_multiprocessor, shared_bytes_per_block, l2_bytes;
  int major, minor;
};

// The device of each number; the chosen one is the current device.
extern const std::vector<DeviceKind> device_kinds;
bool choose_device_kind(const std::string& name);

// Whether streams say that they are being captured. Launches are executed all the same.
extern bool streams_are_capturing;

// How often cudaGraphInstantiate and cudaGraphLaunch succeeded.
extern std::atomic<int64_t> graphs_built, graph_launches;
// Launches, and nodes of graphs, that may begin before the one in front has ended.
extern std::atomic<int64_t> early_launches;

// Remembers an error for cudaGetLastError, with words for cudaGetErrorString.
cudaError_t note_error(cudaError_t error, const std::string& text = "");

size_t params_bytes_of(const void* kernel);  // 0: no such kernel

// Checks the configuration as the driver does, then executes.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, const void* params,
                   size_t shared_bytes);

}  // namespace fastdw::host
