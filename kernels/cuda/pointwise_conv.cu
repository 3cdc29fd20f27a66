// Instances of the pointwise kernel, and which of them a shape gets: the one with the least time by
// a small model of a multiprocessor, whose constants were fitted to times of an H100.
#include "kernels/cuda/pointwise_conv.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/plan_cache.h"
#include "kernels/cuda/pointwise_conv.cuh"

namespace fastdw::cuda {
namespace {

template <class Tiling>
__global__ void __launch_bounds__(Tiling::kThreads, Tiling::kBlocks)
    pointwise_conv(PointwiseKernelParams params) {
  wait_for_previous_launch();
  pointwise::run_block<Tiling>(params);
}

struct MeanParams {
  const float* sums;  // [images][tiles_per_image][channels]
  void* y;            // [images][channels]
  int64_t tiles_per_image, pixels_per_image, channels, channel_blocks;
};

constexpr int kMeanThreads = 128;

template <class T>
__global__ void __launch_bounds__(kMeanThreads) mean_of_tiles(MeanParams params) {
  wait_for_previous_launch();
  const int64_t image = blockIdx.x / params.channel_blocks;
  const int64_t channel = blockIdx.x % params.channel_blocks * kMeanThreads + threadIdx.x;
  const bool inside = channel < params.channels;
  float sum = 0.f;
  for (int64_t tile = image * params.tiles_per_image; tile < (image + 1) * params.tiles_per_image;
       ++tile)
    sum +=
        load_global_or_zero(params.sums + (inside ? tile * params.channels + channel : 0), inside);
  store_global_if(static_cast<T*>(params.y) + (inside ? image * params.channels + channel : 0),
                  from_float<T>(sum / static_cast<float>(params.pixels_per_image)), inside);
}

struct Variant {
  const char* name;
  void (*kernel)(PointwiseKernelParams);
  int rows, columns, groups, threads, stage_bytes, end_bytes, blocks;
};

template <class Tiling>
Variant variant(const char* name) {
  return {name,
          pointwise_conv<Tiling>,
          Tiling::kRows,
          Tiling::kColumns,
          Tiling::kGroups,
          Tiling::kThreads,
          Tiling::kStageBytes,
          Tiling::kEndBytes,
          Tiling::kBlocks};
}

// Narrow tiles are for few output channels, small ones for few pixels, groups for long k. Null
// kernel beyond the last. By FMA the largest tiles would only cost registers.
template <class T, class Math>
Variant whole_variant(int index) {
  using pointwise::Tiling;
  constexpr bool kTensorCores = sizeof(T) == 2 || std::is_same_v<Math, Tf32>;
  switch (index) {
    case 0: return variant<Tiling<T, Math, 128, 64, 64, 32, 1, true>>("pointwise_conv 128x64");
    case 1: return variant<Tiling<T, Math, 64, 64, 32, 32, 1, true>>("pointwise_conv 64x64");
    case 2: return variant<Tiling<T, Math, 128, 32, 32, 32, 1, true>>("pointwise_conv 128x32");
    case 3: return variant<Tiling<T, Math, 128, 16, 32, 16, 1, true>>("pointwise_conv 128x16");
    case 4: return variant<Tiling<T, Math, 64, 32, 32, 16, 1, true>>("pointwise_conv 64x32");
    case 5: return variant<Tiling<T, Math, 64, 32, 32, 16, 2, true>>("pointwise_conv 64x32 x 2");
    case 6: return variant<Tiling<T, Math, 32, 32, 32, 16, 4, true>>("pointwise_conv 32x32 x 4");
    case 7: return variant<Tiling<T, Math, 64, 16, 32, 16, 4, true>>("pointwise_conv 64x16 x 4");
    default: break;
  }
  if constexpr (kTensorCores) {
    if (index == 8)
      return variant<Tiling<T, Math, 128, 128, 64, 32, 1, true>>("pointwise_conv 128x128");
    if (index == 9)
      return variant<Tiling<T, Math, 64, 128, 32, 32, 1, true>>("pointwise_conv 64x128");
    if (index == 10)
      return variant<Tiling<T, Math, 64, 64, 32, 32, 2, true>>("pointwise_conv 64x64 x 2");
  }
  return {};
}

template <class T, class Math>
Variant masked_variant(int index) {
  using pointwise::Tiling;
  if (index == 0)
    return variant<Tiling<T, Math, 64, 64, 32, 32, 1, false>>("pointwise_conv 64x64 masked");
  if (index == 1)
    return variant<Tiling<T, Math, 128, 16, 32, 16, 1, false>>("pointwise_conv 128x16 masked");
  return {};
}

template <class T, class Math>
Variant variant_of(bool whole, int index) {
  return whole ? whole_variant<T, Math>(index) : masked_variant<T, Math>(index);
}

Variant variant_of(const PointwiseParams& params, bool whole, int index) {
  if (params.dtype == DType::fp16) return variant_of<__half, Exact>(whole, index);
  if (params.dtype == DType::bf16) return variant_of<__nv_bfloat16, Exact>(whole, index);
  if (params.tf32) return variant_of<float, Tf32>(whole, index);
  return variant_of<float, Exact>(whole, index);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool is_whole(int64_t elements, DType dtype) { return elements * element_bytes(dtype) % 16 == 0; }

// How a shape falls into tiles of one variant.
struct Partition {
  int64_t group_rows, tiles_per_group, row_tiles, column_tiles, slices, shared_bytes;

  int64_t tiles() const { return row_tiles * column_tiles; }
};

Partition partition(const PointwiseParams& params, const Variant& variant) {
  Partition result{};
  result.group_rows = params.pixels;
  if (params.pool) {
    const int64_t pixels = params.pixels / params.images;
    const int64_t images = variant.rows / pixels;  // in a tile
    result.group_rows = pixels * (images > 1 ? images : 1);
  }
  result.tiles_per_group = ceil_div(result.group_rows, variant.rows);
  result.row_tiles = ceil_div(params.pixels, result.group_rows) * result.tiles_per_group;
  result.column_tiles = ceil_div(params.channels_out, variant.columns);
  const int64_t slice =
      pointwise::kGroupChunks * variant.groups * 16 / element_bytes(params.dtype);
  result.slices = ceil_div(params.channels_in, slice);
  const int64_t stages = result.slices < pointwise::kStages ? result.slices : pointwise::kStages;
  result.shared_bytes = stages * variant.stage_bytes;
  if (result.shared_bytes < variant.end_bytes) result.shared_bytes = variant.end_bytes;
  return result;
}

// Cycles of the busiest multiprocessor, roughly: multiply-adds or bytes from the L2, whichever take
// longer, or for thread blocks that have it to themselves the latency of the ring's slices.
double cycles(const PointwiseParams& params, const Variant& variant, const Partition& tiles,
              const Device& device) {
  const double rate = params.dtype != DType::fp32 ? 536 : params.tf32 ? 268 : 45;
  const double bytes_per_cycle = 42, latency = 2435, slice_latency = 557;
  const double rows = variant.rows, columns = variant.columns, groups = variant.groups;
  const double depth = pointwise::kGroupChunks * 16.0 * groups / element_bytes(params.dtype);
  const double copies = (rows + columns) * 64 * groups / bytes_per_cycle;
  const double products = rows * columns * depth / rate;
  const double slice = copies > products ? copies : products;
  const double slices = static_cast<double>(tiles.slices);
  const double ends = rows * columns * (0.146 + 0.148 * (groups - 1)) + 605;
  const double by_shared = std::floor(
      static_cast<double>(device.shared_bytes_per_multiprocessor) /
      static_cast<double>(tiles.shared_bytes + 1024));
  const double blocks = static_cast<double>(ceil_div(tiles.tiles(), device.multiprocessors));
  const double at_once = std::max(1.0, std::min({blocks, by_shared, 1.0 * variant.blocks}));
  const double alone = slices * std::max(slice, slice_latency) + ends + 605 + 272 * (groups - 1);
  const double busy = at_once * (slices * slice + ends);
  const double second_launch = params.pool && tiles.tiles_per_group > 1 ? 4000 : 0;
  return latency + blocks / at_once * std::max(alone, busy) + second_launch;
}

struct Choice {
  Variant variant;
  Partition tiles;
  double cycles;

  bool is_better_than(const Choice& other, const Device& device) const {
    if (other.variant.kernel == nullptr) return true;
    if (device.fewest_bytes && tiles.column_tiles != other.tiles.column_tiles)
      return tiles.column_tiles < other.tiles.column_tiles;
    return cycles < other.cycles;
  }
};

Choice search(const PointwiseParams& params, bool whole, const Device& device) {
  Choice best{};
  for (int index = 0; variant_of(params, whole, index).kernel != nullptr; ++index) {
    const Variant variant = variant_of(params, whole, index);
    const Partition tiles = partition(params, variant);
    if (tiles.shared_bytes > device.shared_bytes_per_block) continue;
    const Choice choice{variant, tiles, cycles(params, variant, tiles, device)};
    if (choice.is_better_than(best, device)) best = choice;
  }
  return best;
}

Choice choose(const PointwiseParams& params, const Device& device) {
  static auto* cache = new PlanCache<12, Choice>;
  const bool whole = is_whole(params.channels_in, params.dtype) && is_aligned(params.x) &&
                     is_aligned(params.weight);
  return cache->find({static_cast<int64_t>(params.dtype), params.tf32, params.pool, params.images,
                      params.pixels, params.channels_in, params.channels_out, whole,
                      device.multiprocessors, device.shared_bytes_per_block,
                      device.shared_bytes_per_multiprocessor, device.fewest_bytes},
                     [&] { return search(params, whole, device); });
}

// Of a pool over images of several tiles: their sums lie in the workspace.
size_t place_workspace(const PointwiseParams& params, const Partition& tiles,
                       PointwiseKernelParams& kernel) {
  if (!params.pool || tiles.tiles_per_group == 1) return 0;
  kernel.tile_sums = static_cast<float*>(params.workspace);
  return static_cast<size_t>(tiles.row_tiles * params.channels_out) * sizeof(float);
}

void add_mean_of_tiles(const PointwiseParams& params, const PointwiseKernelParams& kernel,
                       LaunchList& list) {
  const MeanParams mean{kernel.tile_sums,       params.y,
                        kernel.tiles_per_group, kernel.pixels_per_image,
                        params.channels_out,    ceil_div(params.channels_out, kMeanThreads)};
  const dim3 grid(static_cast<unsigned>(mean.channel_blocks * params.images));
  auto* of_dtype = params.dtype == DType::fp32   ? mean_of_tiles<float>
                   : params.dtype == DType::fp16 ? mean_of_tiles<__half>
                                                 : mean_of_tiles<__nv_bfloat16>;
  list.add(make_launch("pointwise_conv mean", of_dtype, grid, kMeanThreads, 0, mean));
}

LaunchList plan(const PointwiseParams& params, int64_t residual_stride, const Device& device) {
  const Choice choice = choose(params, device);
  const Partition& tiles = choice.tiles;
  PointwiseKernelParams kernel{};
  kernel.x = params.x;
  kernel.weight = params.weight;
  kernel.residual = params.residual;
  kernel.y = params.y;
  kernel.epilogue = params.epilogue;
  kernel.pixels = params.pixels;
  kernel.channels_in = params.channels_in;
  kernel.channels_out = params.channels_out;
  kernel.group_rows = tiles.group_rows;
  kernel.tiles_per_group = static_cast<uint32_t>(tiles.tiles_per_group);
  kernel.column_tiles = static_cast<uint32_t>(tiles.column_tiles);
  kernel.slices = static_cast<int>(tiles.slices);
  kernel.residual_stride = residual_stride;
  kernel.wide_rows = is_whole(params.channels_out, params.dtype) && is_aligned(params.y) &&
                     is_aligned(params.residual) && is_aligned(params.epilogue.scale) &&
                     is_aligned(params.epilogue.bias);
  kernel.pixels_per_image = params.pool ? params.pixels / params.images : 0;
  LaunchList list;
  list.cycles = choice.cycles;
  list.workspace_bytes = place_workspace(params, tiles, kernel);
  const dim3 grid(static_cast<unsigned>(tiles.tiles()));
  list.add(make_launch(choice.variant.name, choice.variant.kernel, grid,
                       static_cast<unsigned>(choice.variant.threads),
                       static_cast<size_t>(tiles.shared_bytes), kernel));
  if (params.pool && tiles.tiles_per_group > 1) add_mean_of_tiles(params, kernel, list);
  return list;
}

}  // namespace

LaunchList plan_pointwise_conv(const PointwiseParams& params, const Device& device) {
  return plan(params, params.channels_out, device);
}

LaunchList plan_linear(const PointwiseParams& params, const Device& device) {
  return plan(params, 0, device);
}

}  // namespace fastdw::cuda
