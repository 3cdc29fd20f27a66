// What a CUDA kernel is given: device pointers and sizes, no torch. Images are dense; weights are
// torch's own, never repacked: [channels_out][channels_in] is the column-major operand that the
// tensor cores want, and a depthwise filter's taps lie together. Sizes count elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/params.h"

namespace fastdw::cuda {

enum class DType : int32_t { fp32 = 0, fp16 = 1, bf16 = 2 };

constexpr int64_t element_bytes(DType dtype) { return dtype == DType::fp32 ? 4 : 2; }

// y = activation(scale * sum + bias); null: scale 1, bias 0.
struct Epilogue {
  const float* scale;  // [channels_out]
  const float* bias;   // [channels_out]
  Activation activation;
};

// What the choice of tiles depends on.
struct Device {
  int multiprocessors;
  int shared_bytes_per_block;           // with the opt-in, 163 KiB on sm_80, 99 KiB on sm_86
  int shared_bytes_per_multiprocessor;  // 164 KiB on sm_80, 100 KiB on sm_86
  int threads_per_multiprocessor;
  // Kernels that are to be left out where another can do it, for the sake of comparisons.
  bool without_depthwise_tiles, without_stem_mma;
  bool fewest_bytes;  // a 1x1 convolution by tiles that read x as few times as can be
};

struct DepthwiseParams {
  const void* x;       // [batch, height, width, channels_in], or planes: [batch, channels_in, ...]
  const void* weight;  // [channels_in * multiplier][kernel_h * kernel_w]
  void* y;             // as x
  bool channels_last;
  Epilogue epilogue;
  DType dtype;
  int64_t batch, height, width, channels_in, multiplier, height_out, width_out;
  Window window;
};

struct PointwiseParams {
  const void* x;         // [pixels, channels_in]
  const void* weight;    // [channels_out][channels_in]
  const void* residual;  // [pixels, channels_out] or null; added after the activation
  void* y;               // [pixels, channels_out], or with pool the means: [images, channels_out]
  Epilogue epilogue;
  DType dtype;
  bool tf32;              // fp32 products may be rounded to tf32
  bool pool;              // average over the pixels of an image instead of storing them
  int64_t images, pixels;  // pixels in all; an image has pixels / images of them
  int64_t channels_in, channels_out;
  void* workspace;  // scratch
};

// Dense convolution of few input channels, output NHWC.
struct StemParams {
  const void* x;       // planes [batch, channels_in, height, width], or NHWC
  const void* weight;  // [channels_out][channels_in][kernel_h][kernel_w]
  void* y;             // [batch, height_out, width_out, channels_out]
  bool channels_last;  // of x
  Epilogue epilogue;
  DType dtype;
  bool tf32;
  int64_t batch, height, width, channels_in, channels_out, height_out, width_out;
  Window window;  // dilation 1
};

// How a block is launched: as one kernel or one a convolution, whichever is faster; or always so.
// fewest_bytes: as one kernel by tiles that expand few pixels twice and share few sums.
enum class BlockPlan { fastest, fused, separate, fewest_bytes };

// [expand 1x1 ->] depthwise -> project 1x1 [+ x]
struct InvertedResidualParams {
  const void* x;                 // [batch, height, width, channels_in]
  const void* expand_weight;     // [channels_hidden][channels_in], or null: no expansion
  const void* depthwise_weight;  // [channels_hidden][kernel_h * kernel_w]
  const void* project_weight;    // [channels_out][channels_hidden]
  void* y;                       // [batch, height_out, width_out, channels_out]
  Epilogue expand, depthwise, project;
  bool residual;
  DType dtype;
  bool tf32;
  int64_t batch, height, width, channels_in, channels_hidden, channels_out, height_out, width_out;
  Window window;
  BlockPlan plan;
  void* workspace;
  unsigned* counters;  // see launch.h
};

// Global average pool, then a linear layer; the mean is kept in fp32.
struct HeadParams {
  const void* x;       // [batch, pixels, channels_in]; pixels 1: the linear layer alone
  const void* weight;  // [channels_out][channels_in]
  const void* bias;    // [channels_out] or null
  bool bias_is_fp32;   // else it is in the dtype
  void* y;             // [batch, channels_out]
  DType dtype;
  int64_t batch, pixels, channels_in, channels_out;
  void* workspace;
};

}  // namespace fastdw::cuda
