// The depthwise part of a block, from one tile in shared memory into another. A thread makes 4
// channels of kFilterStrip neighbouring outputs of a row; of each row under the window it reads an
// element once and adds it to all outputs that it belongs to. 16 threads read a pixel's 128 bytes.
#pragma once

#include "kernels/cuda/inverted_residual_tile.cuh"

namespace fastdw::cuda::block {

constexpr int kQuad = 4;

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

// A slab of fewer channels than 128 bytes: the strips that are read together are of rows `step`
// apart, which the host has chosen so that they lie in different banks. A slab has 1 to 4 steps of
// multiply(), and `together` strips of 4, 2 or 1 fill the 128 bytes.
template <class T>
struct StripOrder {
  int together_log2, step_log2, rows;
  Divisor lines;  // rows, in whole groups of those read together

  __device__ __forceinline__ StripOrder(const BlockTiling& tiling, int steps, bool last)
      : together_log2(steps == 1 ? 2 : steps == 2 ? 1 : 0),
        step_log2(tiling.row_step_log2),
        rows(tiling.images * tiling.rows),
        lines(tiling.lines_by[last]) {}

  // -1: none.
  __device__ __forceinline__ int row(int line) const {
    int row = line;
    if (together_log2 > 0) {
      const int group = 1 << (together_log2 + step_log2), first = line & -group;
      const int inside = line - first, turn = inside & ((1 << together_log2) - 1);
      if (first + group <= rows) row = first + (turn << step_log2) + (inside >> together_log2);
    }
    return row < rows ? row : -1;
  }
};

// The first channels of a slab, as many as `steps` of multiply() have.
template <int kThreads, class T, class From, class To>
__device__ __forceinline__ void filter_slab(const From& hidden, const To& filtered,
                                            const InvertedResidualParams& block,
                                            const BlockTiling& tiling, int steps, int slab) {
  constexpr int kStepQuads = kStepDepth<T> / kQuad;
  const Window& window = block.window;
  const int stride_h = static_cast<int>(window.stride_h);
  const int stride_w = static_cast<int>(window.stride_w);
  const int row_step = tiling.pitch * kSlabPitch<T>;
  const int count = static_cast<int>(tiling.lines_by[slab + 1 == tiling.slabs].by) *
                    tiling.strips * steps * kStepQuads;
#pragma unroll 1
  for (int i = thread(); i < count; i += kThreads) {
    // Made anew in every turn: the inner loops need the registers.
    const int steps_here = recomputed(steps), quads = steps_here * kStepQuads;
    const Divisor steps_by = slab_steps(steps_here);
    const StripOrder<T> order(tiling, steps_here, recomputed(slab) + 1 == tiling.slabs);
    const auto index = static_cast<int>(
        steps_by.quotient(static_cast<uint32_t>(i / kStepQuads)));  // i / quads
    const int channel = (i - index * quads) * kQuad;
    const auto strip = static_cast<int>(order.lines.quotient(static_cast<uint32_t>(index)));
    const int column = strip * kFilterStrip;
    const int row = order.row(index - strip * static_cast<int>(order.lines.by));
    if (row < 0) continue;
    const auto image = static_cast<int>(tiling.rows_by.quotient(static_cast<uint32_t>(row)));
    const int hidden_row = image * tiling.window_rows + (row - image * tiling.rows) * stride_h;
    StripSums sums = {};
    const float* taps = shared_at<float>(recomputed(tiling.taps_at));
    const int first = hidden_row * row_step + column * stride_w * kSlabPitch<T>;
    add_kernel_rows(sums, hidden() + first + channel, taps + channel, window, tiling.filter,
                    static_cast<int>(window.dilation_h) * row_step);
    const Activate activate(static_cast<Activation>(
        recomputed(static_cast<int>(block.depthwise.activation))));
    float scale[kQuad], bias[kQuad];
    const float* affine = affine_of<T>(tiling, recomputed(slab)) + channel;
    load_quad(scale, affine + 2 * kSlab<T>);
    load_quad(bias, affine + 3 * kSlab<T>);
    T* to = filtered() + (row * tiling.columns + column) * kSlabPitch<T> + channel;
    float results[kFilterStrip * kQuad];
#pragma unroll
    for (int j = 0; j < kFilterStrip * kQuad; ++j)
      results[j] = fmaf(scale[j % kQuad], sums[j / kQuad][j % kQuad], bias[j % kQuad]);
    Pack<T, 2> rounded[kFilterStrip * kQuad / 2];
    activate.apply(rounded, results);
#pragma unroll
    for (int output = 0; output < kFilterStrip; ++output) {
      Pack<T, kQuad> quad;
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        quad.lane[j] = rounded[(output * kQuad + j) / 2].lane[j % 2];
      store_shared_if(reinterpret_cast<Pack<T, kQuad>*>(to + output * kSlabPitch<T>), quad,
                      column + output < tiling.columns);
    }
  }
}

}  // namespace fastdw::cuda::block
