// The block kernel's copies from global to shared memory.
#pragma once

#include "kernels/cuda/inverted_residual.cuh"

namespace fastdw::cuda::block {

// What no copy and no expansion writes: padding.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::clear_hidden() const {
  const int hidden_chunks = tiling.hidden_slots * hidden_elements() / kPackLanes<T>;
  for (int i = thread(); i < hidden_chunks; i += kThreads)
    store_shared(shared_at<WidePack<T>>(tiling.hidden_at) + i, WidePack<T>{});
}

// Where the pixels lie; zeros in outputs that only fill up a warp tile.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::begin() const {
  constexpr int kChunks = kSlabPitch<T> / kPackLanes<T>;
  const int spare = tiling.pixels_out - pixels_out();
#pragma unroll 1
  for (int slot = 0; slot < tiling.filtered_slots; ++slot)
#pragma unroll 1
    for (int i = thread(); i < spare * kChunks; i += kThreads)
      filtered(slot).store(pixels_out() + i / kChunks, i % kChunks, WidePack<T>{});
  const Region here = region();
#pragma unroll 1
  for (int i = thread(); i < tiling.pixels_in; i += kThreads) {
    PixelPlace place{-1, 0};
    if (i < here.pixels_in) {
      const int row = i / here.columns, column = i % here.columns;
      const int image = row / here.rows, row_in_image = row % here.rows;
      place.hidden =
          (image * tiling.window_rows + here.below + row_in_image) * tiling.pitch +
          here.beside + column;
      place.global = (image * static_cast<int>(block.height) + row_in_image) *
                         static_cast<int>(block.width) + column;
    }
    store_shared(places() + i, place);
  }
  __syncthreads();
}

// All channels of the pixels, for expand and the residual.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_x() const {
  const int chunks = tiling.x_pitch / kPackLanes<T> - 1;
  const int rows = (pixels_in() + kWarpTileRows - 1) / kWarpTileRows * kWarpTileRows;
  const T* x = first_pixel();
  const ChunkOrder order(rows, tiling.x_chunks);
#pragma unroll 1
  for (int i = thread(); i < order.count; i += kThreads) {
    int row, chunk;
    order.find(i, row, chunk);
    if (chunk >= chunks) continue;
    const PixelPlace place = load_shared(places() + row);
    const int channel = chunk * kPackLanes<T>;
    const int count = place.hidden < 0 ? 0 : channels_in() - channel;
    copy_chunk(x_tile().chunk(row, chunk),
               count > 0 ? x + (int64_t{place.global} * channels_in() + channel) : x, count,
               tiling.wide_x);
  }
}

// Without expand: the slab's channels, straight to where they are filtered.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_x_slab(int slab, int slot) const {
  const int chunks = 2 * steps_of(slab), pixels = pixels_in();
  const T* x = first_pixel() + slab * kSlab<T>;
  const ChunkOrder order(pixels, slab_chunks(chunks / 2));
#pragma unroll 1
  for (int i = thread(); i < order.count; i += kThreads) {
    int row, chunk;
    order.find(i, row, chunk);
    if (row >= pixels || chunk >= chunks) continue;
    const PixelPlace place = load_shared(places() + row);
    const int channel = chunk * kPackLanes<T>;
    const int count = channels_of(slab) - channel;
    copy_chunk(hidden(slot) + place.hidden * kSlabPitch<T> + channel,
               count > 0 ? x + (int64_t{place.global} * channels_in() + channel) : x, count,
               tiling.wide_x);
  }
}

// Scales, biases and taps of a slab; the taps as they are, transpose_taps() follows.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_constants(int slab) const {
  constexpr int kArrayChunks = kSlab<T> / kPackLanes<float>;
  const int64_t first_channel = static_cast<int64_t>(slab) * kSlab<T>;
  static_assert(kThreads >= kAffineArrays * kArrayChunks, "a chunk a thread");
  if (const int i = thread(); i < kAffineArrays * kArrayChunks) {
    const int array = i / kArrayChunks, channel = i % kArrayChunks * kPackLanes<float>;
    const Epilogue& epilogue = array < 2 ? block.expand : block.depthwise;
    const float* from = array % 2 == 0 ? epilogue.scale : epilogue.bias;
    float* to = affine(slab, array) + channel;
    const int count = channels_of(slab) - channel;
    if (from != nullptr) {
      copy_chunk(to, count > 0 ? from + first_channel + channel : from, count,
                 tiling.wide_affine && (count >= kPackLanes<float> || count <= 0));
    } else {
      const float otherwise = array % 2 == 0 ? 1.f : 0.f;
      store_shared(reinterpret_cast<WidePack<float>*>(to),
                   WidePack<float>{{otherwise, otherwise, otherwise, otherwise}});
    }
  }
  const int taps = tiling.taps;
  const T* from = static_cast<const T*>(block.depthwise_weight) + first_channel * taps;
  const int all = kSlab<T> * taps, inside = channels_of(slab) * taps;
#pragma unroll 1
  for (int i = thread() * kPackLanes<T>; i < all; i += kThreads * kPackLanes<T>)
    copy_chunk(shared_at<T>(tiling.raw_taps_at) + i, i < inside ? from + i : from, inside - i,
               tiling.wide_taps && (inside - i >= kPackLanes<T> || i >= inside));
}

// [channel][tap] as torch has it -> fp32 [tap][channel]. A warp takes 8 taps of 4 channels, which
// lie in different banks; of the rest (most filters have 8 k + 1 taps) every second channel.
template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::transpose_taps(int slab) const {
  const int taps = tiling.taps;
  const int channels = steps_of(slab) * kStepDepth<T>;
  const auto move = [&](int channel, int tap) {
    store_shared(shared_at<float>(tiling.taps_at) + tap * kTapPitch<T> + channel,
                 to_float(load_shared(shared_at<T>(tiling.raw_taps_at) + channel * taps + tap)));
  };
#pragma unroll 1
  for (int eighth = 0; eighth < taps / 8; ++eighth)
#pragma unroll 1
    for (int i = thread(); i < channels * 8; i += kThreads)
      move(i / 8, i % 8 + eighth * 8);
#pragma unroll 1
  for (int tap = taps & ~7; tap < taps; ++tap)
#pragma unroll 1
    for (int i = thread(); i < channels; i += kThreads)
      move(2 * i < channels ? 2 * i : 2 * i - channels + 1, tap);
}

template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_expand_weights(int slab) const {
  const int channels = channels_of(slab);
  const T* from = static_cast<const T*>(block.expand_weight) +
                  static_cast<int64_t>(slab) * kSlab<T> * block.channels_in;
  copy_matrix<kThreads>(expand_weights(), from, channels_in(), channels, channels_in(),
                        (channels + kExpandColumns - 1) / kExpandColumns * kExpandColumns,
                        tiling.x_pitch / kPackLanes<T> - 1, tiling.x_chunks, tiling.wide_expand);
}

template <class Shape>
__device__ __forceinline__ void Kernel<Shape>::copy_project_weights(int slab, int pass,
                                                                    int slot) const {
  const int64_t first = static_cast<int64_t>(recomputed(pass)) * Shape::kColumns;
  const int rows = columns_of(pass);
  const T* from = static_cast<const T*>(block.project_weight) + first * block.channels_hidden +
                  static_cast<int64_t>(slab) * kSlab<T>;
  copy_matrix<kThreads>(
      project_weights(slot), from, static_cast<int>(block.channels_hidden), rows,
      channels_of(slab),
      (rows + Shape::kWarpColumns - 1) / Shape::kWarpColumns * Shape::kWarpColumns,
      2 * steps_of(slab), slab_chunks(steps_of(slab)), tiling.wide_project);
}

}  // namespace fastdw::cuda::block
