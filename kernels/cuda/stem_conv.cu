// Dense convolution of few input channels: which kernel, tiles and grid for a shape.
#include <algorithm>

#include "kernels/cuda/stem_conv.cuh"
#include "kernels/cuda/stem_conv.h"

namespace fastdw::cuda {
namespace stem {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostRows = 8, kMostStrips = 16, kMostPacks = 8;  // of a thread block
constexpr int64_t kSharedBytes = 48 * 1024;                         // without asking for more
constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kMostGridX = (int64_t{1} << 31) - 1;

template <class T, int kKernel, int kStride, bool kWide>
__global__ void __launch_bounds__(kThreads, 2) stem_kernel(Params params) {
  run_block<T, kKernel, kStride, kWide>(params);
}

template <class T>
__global__ void __launch_bounds__(kThreads) direct_kernel(DirectParams params) {
  direct<T>(params);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_quads(int64_t floats) { return ceil_div(floats, kQuad) * kQuad; }

bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class Kernel>
void set_common(Kernel& kernel, const StemParams& params) {
  const int64_t pixels = params.height * params.width;
  kernel.x = params.x;
  kernel.weight = params.weight;
  kernel.y = params.y;
  kernel.epilogue = params.epilogue;
  kernel.x_image = params.channels_in * pixels;
  kernel.x_channel = params.channels_last ? 1 : pixels;
  kernel.x_column = params.channels_last ? params.channels_in : 1;
  kernel.x_row = params.width * kernel.x_column;
  kernel.channels_in = params.channels_in;
  kernel.channels_out = params.channels_out;
}

// Strips split a row evenly, packs the channels; then as many rows as leave each multiprocessor a
// thread block, and as fit into shared memory. False where a single one does not.
bool choose_tiles(const StemParams& params, const Device& device, Params& tiles) {
  const Window& window = params.window;
  const int64_t packs = ceil_div(params.channels_out, kChannels);
  const int64_t pack_groups = ceil_div(packs, kMostPacks);
  tiles.packs = static_cast<int32_t>(ceil_div(packs, pack_groups));
  tiles.pack_groups = static_cast<uint32_t>(pack_groups);
  const int64_t strips = ceil_div(params.width_out, kPixels);
  const int64_t column_tiles = ceil_div(strips, kMostStrips);
  tiles.strips = static_cast<int32_t>(ceil_div(strips, column_tiles));
  tiles.column_tiles = static_cast<uint32_t>(ceil_div(strips, tiles.strips));
  const int64_t columns = tiles.strips * kPixels;
  tiles.x_pitch =
      static_cast<int32_t>(whole_quads((columns - 1) * window.stride_w + window.kernel_w));
  tiles.weight_pitch = tiles.packs * kChannels + kQuad;
  const int64_t tap_floats =
      window.kernel_h * window.kernel_w * (tiles.weight_pitch + tiles.packs * kChannels);
  const int64_t across = pack_groups * tiles.column_tiles * params.batch;
  const auto channels_that_fit = [&](int64_t rows) {
    const int64_t rows_in = (rows - 1) * window.stride_h + window.kernel_h;
    const int64_t floats = kSharedBytes / 4 - tiles.packs * kChannels * kRawPadding;
    return floats / (rows_in * tiles.x_pitch + tap_floats);
  };
  const int64_t most =
      std::min({kMostRows, int64_t{kThreads} / (tiles.packs * tiles.strips), params.height_out});
  int64_t rows = most;
  const auto spreads = [&] {
    return across * ceil_div(params.height_out, rows) >= device.multiprocessors;
  };
  const int64_t few = std::min<int64_t>(params.channels_in, 4);
  while (rows > 1 && (channels_that_fit(rows) < few || !spreads())) --rows;
  tiles.rows = static_cast<int32_t>(rows);
  tiles.rows_in = static_cast<int32_t>((rows - 1) * window.stride_h + window.kernel_h);
  tiles.channels_at_once =
      static_cast<int32_t>(std::min(params.channels_in, channels_that_fit(rows)));
  return tiles.channels_at_once > 0;
}

// Coordinates and the grid in 32 bits.
bool can_stage(const StemParams& params) {
  constexpr int64_t most = int64_t{1} << 20;
  const Window& window = params.window;
  const int64_t largest =
      std::max({params.height, params.width, params.height_out, params.width_out, window.kernel_h,
                window.kernel_w, window.pad_left, window.pad_top});
  return largest < most && std::max(window.stride_h, window.stride_w) < 512 &&
         window.kernel_h * window.kernel_w < most && params.channels_in < most &&
         (params.width + window.pad_left) * params.channels_in < int64_t{1} << 29 &&
         params.batch <= kMostGridYZ * kMostGridYZ;
}

template <class T>
KernelLaunch plan_direct(const StemParams& params) {
  DirectParams direct{};
  set_common(direct, params);
  direct.height = params.height;
  direct.width = params.width;
  direct.height_out = params.height_out;
  direct.width_out = params.width_out;
  direct.window = params.window;
  direct.threads = params.batch * params.height_out * params.width_out * params.channels_out;
  return make_launch("stem_conv, any window", direct_kernel<T>,
                     dim3(static_cast<unsigned>(ceil_div(direct.threads, kThreads))), kThreads, 0,
                     direct);
}

template <class T, bool kWide>
KernelLaunch stem_launch(const StemParams& params, const Params& stem) {
  const Window& window = params.window;
  const bool usual = window.kernel_w == 3 && window.stride_w == 2;
  const int64_t z = ceil_div(params.batch, kMostGridYZ);
  const int64_t tiles =
      int64_t{stem.pack_groups} * stem.column_tiles * ceil_div(params.height_out, stem.rows);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ceil_div(params.batch, z)),
                  static_cast<unsigned>(z));
  const int64_t warps = ceil_div(int64_t{stem.packs} * stem.strips * stem.rows, 32);
  const int64_t outputs = stem.packs * kChannels;
  const int64_t floats =
      outputs * kRawPadding +
      stem.channels_at_once *
          (int64_t{stem.rows_in} * stem.x_pitch +
           window.kernel_h * window.kernel_w * (stem.weight_pitch + outputs));
  return make_launch("stem_conv", usual ? stem_kernel<T, 3, 2, kWide> : stem_kernel<T, 0, 0, kWide>,
                     grid, static_cast<unsigned>(warps * 32), static_cast<size_t>(floats * 4),
                     stem);
}

template <class T>
LaunchList plan(const StemParams& params, const Device& device) {
  LaunchList list;
  Params stem{};
  if (!can_stage(params) || !choose_tiles(params, device, stem) ||
      int64_t{stem.pack_groups} * stem.column_tiles * params.height_out > kMostGridX) {
    list.add(plan_direct<T>(params));
    return list;
  }
  set_common(stem, params);
  stem.batch = params.batch;
  stem.height = static_cast<int32_t>(params.height);
  stem.width = static_cast<int32_t>(params.width);
  stem.height_out = static_cast<int32_t>(params.height_out);
  stem.width_out = static_cast<int32_t>(params.width_out);
  stem.kernel_h = static_cast<int32_t>(params.window.kernel_h);
  stem.kernel_w = static_cast<int32_t>(params.window.kernel_w);
  stem.stride_h = static_cast<int32_t>(params.window.stride_h);
  stem.stride_w = static_cast<int32_t>(params.window.stride_w);
  stem.pad_left = static_cast<int32_t>(params.window.pad_left);
  stem.pad_top = static_cast<int32_t>(params.window.pad_top);
  stem.channels_last = params.channels_last;
  stem.chunked = stem.x_row % kQuad == 0 && is_aligned(params.x, kQuad * sizeof(T)) &&
                 (!params.channels_last || stem.channels_at_once == params.channels_in);
  const bool wide = params.channels_out % kPackLanes<T> == 0 && is_aligned(params.y, 16) &&
                    is_aligned(params.epilogue.bias, 16);
  list.add(wide ? stem_launch<T, true>(params, stem) : stem_launch<T, false>(params, stem));
  return list;
}

}  // namespace
}  // namespace stem

LaunchList plan_stem_conv(const StemParams& params, const Device& device) {
  switch (params.dtype) {
    case DType::fp16: return stem::plan<__half>(params, device);
    case DType::bf16: return stem::plan<__nv_bfloat16>(params, device);
    default: return stem::plan<float>(params, device);
  }
}

}  // namespace fastdw::cuda
