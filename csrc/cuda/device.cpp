#include "csrc/cuda/device.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

namespace fastdw::cuda {
namespace {

Device query_device(int32_t device_index) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, device_index), "cudaDeviceGetAttribute");
    return value;
  };
  Device device{};
  device.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device.shared_bytes_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.shared_bytes_per_multiprocessor = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  device.threads_per_multiprocessor = ask(cudaDevAttrMaxThreadsPerMultiProcessor);
  return device;
}

std::atomic<int (*)()> tf32_question{nullptr};

}  // namespace

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or torch would report it once more, elsewhere
  fail(what, ": ", cudaGetErrorString(error));
}

const Device& device_of(int32_t device_index) {
  static std::mutex mutex;
  static std::map<int32_t, Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = devices.find(device_index);
  if (found != devices.end()) return found->second;
  return devices.emplace(device_index, query_device(device_index)).first->second;
}

void check_on_device(const char* name, const Tensor& tensor, const Tensor& x) {
  FASTDW_CHECK(is_on_device(tensor) && device_index(tensor) == device_index(x), name,
               ": expected a tensor on the device of x");
}

DType dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::fp32;
    case ScalarType::Half: return DType::fp16;
    case ScalarType::BFloat16: return DType::bf16;
    default: fail(name, ": no kernel for dtype ", dtype_name(tensor.scalar_type()));
  }
}

Tensor empty_like_device(const Tensor& x, std::initializer_list<int64_t> sizes,
                         bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor row_of_bytes(const Tensor& x, int64_t bytes, int64_t zeros, cudaStream_t stream) {
  const Tensor row = torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, x.device());
  const auto zeroed = static_cast<size_t>(std::min(bytes, zeros));
  if (zeroed > 0)
    check_cuda(cudaMemsetAsync(row.mutable_data_ptr(), 0, zeroed, stream), "cudaMemsetAsync");
  return row;
}

namespace {

// Which of the words a variable says; 0, the first, where it is not set.
int chosen(const char* variable, std::initializer_list<std::string_view> words) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return 0;
  std::string expected;
  for (const std::string_view& word : words) {
    if (word == text) return static_cast<int>(&word - words.begin());
    expected += (expected.empty() ? "" : ", ") + std::string(word);
  }
  FASTDW_CHECK(false, variable, ": expected one of ", expected, ", got ", std::string(text));
  return 0;
}

}  // namespace

Wishes wished() {
  const BlockPlan plans[] = {BlockPlan::fastest, BlockPlan::fused, BlockPlan::separate,
                             BlockPlan::fewest_bytes};
  return {plans[chosen("FASTDW_CUDA_BLOCKS", {"fastest", "fused", "separate", "fewest_bytes"})],
          chosen("FASTDW_CUDA_DEPTHWISE", {"fastest", "walk"}) == 1,
          chosen("FASTDW_CUDA_STEM", {"fastest", "fma"}) == 1,
          chosen("FASTDW_CUDA_LAUNCHES", {"early", "late"}) == 1};
}

Device planned_for(const Device& device, const Wishes& wishes) {
  Device result = device;
  result.without_depthwise_tiles = wishes.without_depthwise_tiles;
  result.without_stem_mma = wishes.without_stem_mma;
  result.fewest_bytes = wishes.blocks == BlockPlan::fewest_bytes;
  return result;
}

void run_launches(const LaunchList& list, cudaStream_t stream) {
  const bool may_begin_early = !wished().late;
  for (int i = 0; i < list.count; ++i)
    check_cuda(run(list.launches[i], stream, may_begin_early), list.launches[i].name);
}

bool allow_tf32() {
  const auto question = tf32_question.load(std::memory_order_relaxed);
  return question == nullptr || question() != 0;
}

void set_tf32_question(int (*question)()) { tf32_question = question; }

}  // namespace fastdw::cuda
