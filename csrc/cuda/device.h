// What every file of csrc/cuda needs of torch and of the CUDA runtime: the device of a tensor and
// its stream, memory, dtypes, errors, torch's switch for tf32.
#pragma once

#include <initializer_list>

#include "csrc/cuda/stream.h"
#include "csrc/tensor_checks.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

// Throws std::runtime_error; `what` begins the message.
void check_cuda(cudaError_t error, const char* what);

const Device& device_of(int32_t device_index);

// While it lives, the device of x is the current one.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& x) : index_(device_index(x)), guard_(index_) {}

  int32_t index() const { return index_; }
  cudaStream_t stream() const { return current_stream(index_); }

 private:
  int32_t index_;
  DeviceGuard guard_;
};

// `name` begins the message where the tensor is not on the device of x.
void check_on_device(const char* name, const Tensor& tensor, const Tensor& x);

DType dtype_of(const char* name, const Tensor& tensor);

// Whether kernels may load 16 bytes at a time from its first element on.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// Uninitialized, in the dtype and on the device of x.
Tensor empty_like_device(const Tensor& x, std::initializer_list<int64_t> sizes, bool channels_last);

// A row of bytes on the device of x, the first `zeros` of them zeroed on the stream.
Tensor row_of_bytes(const Tensor& x, int64_t bytes, int64_t zeros, cudaStream_t stream);

// What the environment asks for, so that choices can be compared; nothing: the fastest.
struct Wishes {
  BlockPlan blocks;              // FASTDW_CUDA_BLOCKS: fastest, fused, separate or fewest_bytes
  bool without_depthwise_tiles;  // FASTDW_CUDA_DEPTHWISE: fastest or walk
  bool without_stem_mma;         // FASTDW_CUDA_STEM: fastest or fma
  bool late;                     // FASTDW_CUDA_LAUNCHES: early or late, see launch.h

  int bits() const {
    return static_cast<int>(blocks) << 3 | without_depthwise_tiles << 2 | without_stem_mma << 1 |
           static_cast<int>(late);
  }
};

Wishes wished();

// The device as the planners are to see it.
Device planned_for(const Device& device, const Wishes& wishes);

void run_launches(const LaunchList& list, cudaStream_t stream);

// Plans an op and puts it on the current stream of x's device. `plan(device, workspace, counters)`
// returns a LaunchList, the same for all but for the addresses. Both are taken for each call, as
// torch's allocator knows about streams and captured graphs.
template <class Plan>
void launch(const Tensor& x, const Plan& plan) {
  const DeviceScope scope(x);
  const Device device = planned_for(device_of(scope.index()), wished());
  LaunchList list = plan(device, nullptr, nullptr);
  Tensor memory;
  if (list.workspace_bytes > 0 || list.counts) {
    const int64_t counters = list.counts ? kCounterBytes : 0;
    memory = row_of_bytes(x, counters + static_cast<int64_t>(list.workspace_bytes), counters,
                          scope.stream());
    auto* start = static_cast<char*>(memory.mutable_data_ptr());
    list = plan(device, start + counters, reinterpret_cast<unsigned*>(start));
  }
  run_launches(list, scope.stream());
}

// Whether torch lets its own fp32 convolutions round to tf32. The stable ABI cannot ask torch, so
// fastdw/native.py leaves a function that can; without it (a program without Python) the answer is
// torch's default, yes.
bool allow_tf32();
void set_tf32_question(int (*question)());

}  // namespace fastdw::cuda
