// Memory that a thread keeps from call to call: a fresh allocation of megabytes costs page faults
// worth more than many of these kernels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "csrc/tensor_checks.h"

namespace fastdw {

constexpr int64_t kCacheLineBytes = 64;

struct FreeMemory {
  void operator()(float* memory) const { std::free(memory); }
};
using AlignedFloats = std::unique_ptr<float[], FreeMemory>;

inline AlignedFloats allocate_floats(int64_t floats) {
  if (floats < 0 || floats > kMostFloats) throw std::bad_alloc();
  const int64_t line = kCacheLineBytes / static_cast<int64_t>(sizeof(float));
  const int64_t rounded = (floats + line - 1) / line * line;
  void* memory = std::aligned_alloc(kCacheLineBytes, rounded * sizeof(float));
  if (!memory) throw std::bad_alloc();
  return AlignedFloats(static_cast<float*>(memory));
}

// One thread's buffer. Requests beyond the limit are served for one call and then given back.
template <int64_t kept_limit_bytes>
class ReusableBuffer {
 public:
  class Lease {
   public:
    Lease(float* data, AlignedFloats owned) : data_(data), owned_(std::move(owned)) {}
    float* data() const { return data_; }

   private:
    float* data_;
    AlignedFloats owned_;  // set only beyond the limit
  };

  Lease take(int64_t floats) {
    if (floats <= size_) return Lease(kept_.get(), nullptr);
    if (floats > kept_limit_bytes / static_cast<int64_t>(sizeof(float))) {
      AlignedFloats memory = allocate_floats(floats);
      float* data = memory.get();
      return Lease(data, std::move(memory));
    }
    size_ = 0;
    kept_.reset();
    kept_ = allocate_floats(floats);
    size_ = floats;
    return Lease(kept_.get(), nullptr);
  }

 private:
  AlignedFloats kept_;
  int64_t size_ = 0;
};

// Scratch of a kernel that runs on this thread.
inline ReusableBuffer<int64_t{16} << 20>& thread_scratch() {
  thread_local ReusableBuffer<int64_t{16} << 20> buffer;
  return buffer;
}

}  // namespace fastdw
