// The depthwise part of a block, from one tile in shared memory into another. A thread makes 4
// channels of kFilterStrip neighbouring outputs of a row; of each row under the window it reads an
// element once and adds it to all outputs that it belongs to. 16 threads read a pixel's 128 bytes.
#pragma once

#include "kernels/cuda/inverted_residual_tile.cuh"

namespace fastdw::cuda::block {

constexpr int kQuad = 4;

// Shared memory of one slab: taps [kernel_h * kernel_w][kTapPitch], scale and bias [kSlab].
struct FilterConstants {
  const float *taps, *scale, *bias;
};

using StripSums = float[kFilterStrip][kQuad];

template <class T>
__device__ __forceinline__ void load_quad(float (&values)[kQuad], const T* from) {
  unpack(values, load_shared(reinterpret_cast<const Pack<T, kQuad>*>(from)));
}

__device__ __forceinline__ void add_products(float (&sums)[kQuad], const float (&a)[kQuad],
                                             const float (&b)[kQuad]) {
#pragma unroll
  for (int i = 0; i < kQuad; ++i) sums[i] = fmaf(a[i], b[i], sums[i]);
}

// One kernel row of kKernel taps, kStride between outputs, no dilation.
template <int kKernel, int kStride, class T>
__device__ __forceinline__ void add_kernel_row(StripSums& sums, const T* line, const float* taps) {
  float tap[kKernel][kQuad];
#pragma unroll
  for (int i = 0; i < kKernel; ++i) load_quad(tap[i], taps + i * kTapPitch<T>);
#pragma unroll
  for (int i = 0; i < (kFilterStrip - 1) * kStride + kKernel; ++i) {
    float value[kQuad];
    load_quad(value, line + i * kSlabPitch<T>);
#pragma unroll
    for (int output = 0; output < kFilterStrip; ++output) {
      const int place = i - output * kStride;
      if (place >= 0 && place < kKernel) add_products(sums[output], tap[place], value);
    }
  }
}

template <class T>
__device__ __forceinline__ void add_any_kernel_row(StripSums& sums, const T* line,
                                                   const float* taps, int kernel, int stride,
                                                   int dilation) {
#pragma unroll 1
  for (int i = 0; i < kernel; ++i) {
    float tap[kQuad];
    load_quad(tap, taps + i * kTapPitch<T>);
#pragma unroll
    for (int output = 0; output < kFilterStrip; ++output) {
      float value[kQuad];
      load_quad(value, line + (output * stride + i * dilation) * kSlabPitch<T>);
      add_products(sums[output], tap, value);
    }
  }
}

// The windows that have code of their own; general is any.
enum class FilterKind { k3s1, k3s2, k5s1, k5s2, general };

__device__ __forceinline__ FilterKind filter_kind(const Window& window) {
  if (window.dilation_w != 1) return FilterKind::general;
  if (window.kernel_w == 3 && window.stride_w == 1) return FilterKind::k3s1;
  if (window.kernel_w == 3 && window.stride_w == 2) return FilterKind::k3s2;
  if (window.kernel_w == 5 && window.stride_w == 1) return FilterKind::k5s1;
  if (window.kernel_w == 5 && window.stride_w == 2) return FilterKind::k5s2;
  return FilterKind::general;
}

template <class T>
__device__ __forceinline__ void add_kernel_rows(StripSums& sums, const T* line, const float* taps,
                                                const Window& window, FilterKind kind,
                                                int line_step) {
  const int kernel_w = static_cast<int>(window.kernel_w);
#pragma unroll 1
  for (int row = 0; row < static_cast<int>(window.kernel_h); ++row) {
    if (kind == FilterKind::k3s1)
      add_kernel_row<3, 1>(sums, line, taps);
    else if (kind == FilterKind::k3s2)
      add_kernel_row<3, 2>(sums, line, taps);
    else if (kind == FilterKind::k5s1)
      add_kernel_row<5, 1>(sums, line, taps);
    else if (kind == FilterKind::k5s2)
      add_kernel_row<5, 2>(sums, line, taps);
    else
      add_any_kernel_row(sums, line, taps, kernel_w, static_cast<int>(window.stride_w),
                         static_cast<int>(window.dilation_w));
    line += line_step;
    taps += kernel_w * kTapPitch<T>;
  }
}

// A slab of fewer channels than 128 bytes: the strips that are read together are of rows
// `row_step` apart, which the host has chosen so that they lie in different banks.
template <class T>
struct StripOrder {
  int together, step, rows, lines;  // lines: rows, in whole groups of those read together

  __device__ __forceinline__ StripOrder(const BlockTiling& tiling, int channels)
      : together(kSlab<T> % channels == 0 ? kSlab<T> / channels : 1),
        step(tiling.row_step),
        rows(tiling.images * tiling.rows),
        lines((rows + together - 1) / together * together) {}

  // -1: none.
  __device__ __forceinline__ int row(int line) const {
    const int group = together * step, first = line / group * group, inside = line - first;
    const int row = first + group <= rows ? first + inside % together * step + inside / together
                                          : line;
    return row < rows ? row : -1;
  }
};

// The first `channels` channels of a slab.
template <int kThreads, class T>
__device__ __forceinline__ void filter_slab(const T* hidden, T* filtered,
                                            const FilterConstants& constants,
                                            const InvertedResidualParams& block,
                                            const BlockTiling& tiling, int channels) {
  const Window& window = block.window;
  const FilterKind kind = filter_kind(window);
  const int stride_h = static_cast<int>(window.stride_h);
  const int stride_w = static_cast<int>(window.stride_w);
  const int row_step = tiling.pitch * kSlabPitch<T>;
  const int quads = channels / kQuad;
  const int strips = (tiling.columns + kFilterStrip - 1) / kFilterStrip;
  const Activate activate(block.depthwise.activation);
  const StripOrder<T> order(tiling, channels);
#pragma unroll 1
  for (int i = recomputed(thread()); i < order.lines * strips * quads; i += kThreads) {
    const int index = i / quads, channel = (i - index * quads) * kQuad;
    const int strip = index / order.lines, column = strip * kFilterStrip;
    const int row = order.row(index - strip * order.lines);
    if (row < 0) continue;
    const int image = row / tiling.rows;
    const int hidden_row = image * tiling.window_rows + (row - image * tiling.rows) * stride_h;
    StripSums sums = {};
    const int first = hidden_row * row_step + column * stride_w * kSlabPitch<T>;
    add_kernel_rows(sums, hidden + first + channel, constants.taps + channel, window, kind,
                    static_cast<int>(window.dilation_h) * row_step);
    float scale[kQuad], bias[kQuad];
    load_quad(scale, constants.scale + channel);
    load_quad(bias, constants.bias + channel);
    T* to = filtered + (row * tiling.columns + column) * kSlabPitch<T> + channel;
    float results[kFilterStrip * kQuad];
#pragma unroll
    for (int j = 0; j < kFilterStrip * kQuad; ++j)
      results[j] = fmaf(scale[j % kQuad], sums[j / kQuad][j % kQuad], bias[j % kQuad]);
    activate.apply(results);
#pragma unroll
    for (int output = 0; output < kFilterStrip; ++output) {
      float quad[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) quad[j] = results[output * kQuad + j];
      store_shared_if(reinterpret_cast<Pack<T, kQuad>*>(to + output * kSlabPitch<T>),
                      pack<T, kQuad>(quad), column + output < tiling.columns);
    }
  }
}

}  // namespace fastdw::cuda::block
