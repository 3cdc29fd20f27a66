// Dense convolution of few input channels: which kernel, tiles and grid for a shape.
#include <algorithm>

#include "kernels/cuda/stem_conv.cuh"
#include "kernels/cuda/stem_conv.h"
#include "kernels/cuda/stem_conv_mma.cuh"

namespace fastdw::cuda {
namespace stem {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostRows = 8, kMostStrips = 16, kMostPacks = 8;  // of a thread block
constexpr int kPixels = 8, kFewPixels = 2;                          // of a thread
constexpr int64_t kMostMmaRows = 4, kMostSegments = 8;
constexpr int64_t kSharedBytes = 48 * 1024;  // without asking for more
constexpr int64_t kMostPlace = 65535;         // in x there, bytes
constexpr int64_t kTooMuch = int64_t{1} << 40;
constexpr int64_t kMostTerms = 4096;
constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kMostGridX = (int64_t{1} << 31) - 1;

template <class T, int kKernel, int kStride, int kPixels, bool kWide>
__global__ void __launch_bounds__(kThreads, 2) stem_kernel(Params params) {
  wait_for_previous_launch();
  run_block<T, kKernel, kStride, kPixels, kWide>(params);
}

template <class T, int kSteps, bool kWide>
__global__ void __launch_bounds__(kMmaWarps * 32, kSteps == 1 || kSteps == 2 ? 6 : 4)
    stem_mma_kernel(MmaParams params) {
  wait_for_previous_launch();
  run_mma_block<T, kSteps, kWide>(params);
}

template <class T>
__global__ void __launch_bounds__(kThreads) direct_kernel(DirectParams params) {
  wait_for_previous_launch();
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
  const int64_t pixels = params.batch * params.height_out * params.width_out;
  const bool few_threads = packs * pixels / kPixels < kThreads * int64_t{device.multiprocessors};
  tiles.pixels = few_threads ? kFewPixels : kPixels;
  const int64_t pack_groups = ceil_div(packs, kMostPacks);
  tiles.packs = static_cast<int32_t>(ceil_div(packs, pack_groups));
  tiles.pack_groups = static_cast<uint32_t>(pack_groups);
  const int64_t strips = ceil_div(params.width_out, tiles.pixels);
  const int64_t column_tiles = ceil_div(strips, kMostStrips);
  tiles.strips = static_cast<int32_t>(ceil_div(strips, column_tiles));
  tiles.column_tiles = static_cast<uint32_t>(ceil_div(strips, tiles.strips));
  const int64_t columns = int64_t{tiles.strips} * tiles.pixels;
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
      stem.channels_at_once * (int64_t{stem.rows_in} * stem.x_pitch +
                               window.kernel_h * window.kernel_w * (stem.weight_pitch + outputs));
  const auto few =
      usual ? stem_kernel<T, 3, 2, kFewPixels, kWide> : stem_kernel<T, 0, 0, kFewPixels, kWide>;
  const auto many =
      usual ? stem_kernel<T, 3, 2, kPixels, kWide> : stem_kernel<T, 0, 0, kPixels, kWide>;
  return make_launch("stem_conv", stem.pixels == kPixels ? many : few, grid,
                     static_cast<unsigned>(warps * 32), static_cast<size_t>(floats * 4), stem);
}

// The least number from `least` that leaves this remainder.
int64_t with_remainder(int64_t least, int64_t remainder, int64_t divisor) {
  return least + ((remainder - least) % divisor + divisor) % divisor;
}

// 0: any number, one after another.
int64_t steps_in_registers(int64_t steps) {
  return steps > kMostSteps ? 0 : steps > 2 ? 4 : steps;
}

int64_t weight_elements(const MmaParams& tiles, int64_t depth) {
  return tiles.groups * kGroup * tiles.steps * depth;
}

// Rows of shared memory lie so that the terms of a fragment, which are of up to 3 rows, meet in few
// banks (of 2 bytes, 9 words of a row: in none): 12 or 16 banks apart, also where the next channel
// begins. Returns the bytes.
template <class T>
int64_t lay_out(const StemParams& params, MmaParams& tiles) {
  const Window& window = params.window;
  constexpr int64_t kWord = 4 / sizeof(T), kBanks = 32 * kWord;  // in elements
  constexpr int64_t kRowBanks = (sizeof(T) == 2 ? 12 : 16) * kWord;
  const int64_t span =
      ((tiles.segments * kSegment - 1) * window.stride_w + window.kernel_w) * tiles.x_column;
  const int64_t chunks = ceil_div(span + tiles.chunk - 1, tiles.chunk);
  const int64_t pitch = with_remainder(chunks * tiles.chunk, kRowBanks, kBanks);
  const int64_t rows_in = (tiles.rows - 1) * window.stride_h + window.kernel_h;
  const int64_t plane = with_remainder(rows_in * pitch, window.kernel_h * kRowBanks, kBanks);
  const int64_t x_elements = tiles.planes * plane;
  if (x_elements * sizeof(T) > kMostPlace) return kTooMuch;
  tiles.rows_in = Divisor(rows_in);
  tiles.row_chunks = Divisor(chunks);
  tiles.pitch = static_cast<int32_t>(pitch);
  tiles.channel_pitch = params.channels_last ? 1 : static_cast<int32_t>(plane);
  tiles.weights_at = static_cast<int32_t>(x_elements);
  const int64_t elements = x_elements + weight_elements(tiles, kTermDepth<T>);
  tiles.table_at = static_cast<int32_t>(elements);
  return elements * sizeof(T) + tiles.steps * 4 * sizeof(StepPlaces<T>);
}

// Warps take different output channels first. Then rows and segments of a thread block: several
// products a warp, for whose sake it loads the weights, as long as there are thread blocks for
// every multiprocessor to hold many; in the end one a warp. False where one row does not fit.
template <class T>
bool choose_mma_tiles(const StemParams& params, const Device& device, int groups_log2,
                      int64_t shared_bytes, MmaParams& tiles) {
  tiles.groups_log2 = groups_log2;
  tiles.groups = 1 << groups_log2;
  tiles.warps_a_group = kMmaWarps / tiles.groups;
  tiles.channel_blocks =
      static_cast<uint32_t>(ceil_div(params.channels_out, tiles.groups * kGroup));
  const int64_t segments = ceil_div(params.width_out, kSegment);
  int64_t column_tiles = ceil_div(segments, kMostSegments);
  tiles.rows = kMostMmaRows;
  const auto split = [&] {
    tiles.segments = static_cast<int32_t>(ceil_div(segments, column_tiles));
  };
  const auto blocks = [&] {
    return tiles.channel_blocks * ceil_div(segments, tiles.segments) *
           ceil_div(params.height_out, tiles.rows) * params.batch;
  };
  const auto fits = [&] { return lay_out<T>(params, tiles) <= shared_bytes; };
  split();
  while (tiles.rows > 1 && (blocks() < 8 * int64_t{device.multiprocessors} || !fits()))
    --tiles.rows;
  while ((tiles.segments > tiles.warps_a_group && blocks() < 2 * device.multiprocessors) ||
         (tiles.segments > 1 && !fits())) {
    ++column_tiles;
    split();
  }
  return fits();
}

// With what a thread block has without asking, fewer output channels at once if need be; then with
// what it may ask for.
template <class T>
bool choose_mma_tiles(const StemParams& params, const Device& device, MmaParams& tiles) {
  const int64_t groups = ceil_div(params.channels_out, kGroup);
  for (const int64_t bytes : {kSharedBytes, int64_t{device.shared_bytes_per_block}})
    for (int log2 = groups == 1 ? 0 : groups == 2 ? 1 : 2; log2 >= 0; --log2)
      if (choose_mma_tiles<T>(params, device, log2, bytes, tiles)) return true;
  return false;
}

bool can_use_mma(const StemParams& params) {
  const Window& window = params.window;
  return window.kernel_h * window.kernel_w <= kMostTerms &&
         params.channels_in * window.kernel_h * window.kernel_w <= kMostTerms &&
         params.channels_in * params.height * params.width < int64_t{1} << 31 &&
         params.channels_out < int64_t{1} << 24 && params.batch <= kMostGridYZ &&
         params.height_out <= kMostGridYZ &&
         params.width_out * params.channels_out < int64_t{1} << 28;
}

template <class T>
void set_mma(MmaParams& mma, const StemParams& params) {
  const Window& window = params.window;
  set_common(mma, params);
  mma.height = static_cast<int32_t>(params.height);
  mma.height_out = static_cast<int32_t>(params.height_out);
  mma.width_out = static_cast<int32_t>(params.width_out);
  mma.stride_h = static_cast<int32_t>(window.stride_h);
  mma.stride_w = static_cast<int32_t>(window.stride_w);
  mma.pad_left = static_cast<int32_t>(window.pad_left);
  mma.pad_top = static_cast<int32_t>(window.pad_top);
  const int64_t taps = window.kernel_h * window.kernel_w, terms = params.channels_in * taps;
  mma.terms = static_cast<int32_t>(terms);
  const int64_t steps = ceil_div(terms, kTermDepth<T>), kept = steps_in_registers(steps);
  mma.steps = static_cast<int32_t>(kept > 0 ? kept : steps);
  mma.taps = Divisor(taps);
  mma.kernel_w = Divisor(window.kernel_w);
  mma.planes = params.channels_last ? 1 : static_cast<uint32_t>(params.channels_in);
  const auto allows = [&](int chunk) {
    return mma.x_row % chunk == 0 && is_aligned(params.x, chunk * sizeof(T));
  };
  constexpr int kWide = kPackLanes<T>;
  mma.chunk = allows(kWide) ? kWide : allows(kWide / 2) ? kWide / 2 : 1;
}

template <class T, int kSteps>
KernelLaunch mma_launch(const StemParams& params, const MmaParams& mma) {
  const bool wide = params.channels_out % kPackLanes<T> == 0 && is_aligned(params.y, 16) &&
                    is_aligned(params.epilogue.scale, 16) && is_aligned(params.epilogue.bias, 16);
  const int64_t columns = ceil_div(params.width_out, mma.segments * kSegment);
  const dim3 grid(static_cast<unsigned>(columns * mma.channel_blocks),
                  static_cast<unsigned>(ceil_div(params.height_out, mma.rows)),
                  static_cast<unsigned>(params.batch));
  const size_t bytes = mma.table_at * sizeof(T) + mma.steps * 4 * sizeof(StepPlaces<T>);
  return make_launch("stem_conv, tensor cores",
                     wide ? stem_mma_kernel<T, kSteps, true> : stem_mma_kernel<T, kSteps, false>,
                     grid, kMmaWarps * 32, bytes, mma);
}

// Nothing in the list where another kernel has to do it.
template <class T>
void add_mma(LaunchList& list, const StemParams& params, const Device& device) {
  MmaParams mma{};
  if ((sizeof(T) == 4 && !params.tf32) || !can_use_mma(params)) return;
  set_mma<T>(mma, params);
  if (!choose_mma_tiles<T>(params, device, mma)) return;
  switch (steps_in_registers(mma.steps)) {
    case 1: return list.add(mma_launch<T, 1>(params, mma));
    case 2: return list.add(mma_launch<T, 2>(params, mma));
    case 4: return list.add(mma_launch<T, 4>(params, mma));
    default: return list.add(mma_launch<T, 0>(params, mma));
  }
}

template <class T>
LaunchList plan(const StemParams& params, const Device& device) {
  LaunchList list;
  if (can_stage(params) && !device.without_stem_mma) add_mma<T>(list, params, device);
  if (list.count > 0) return list;
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
