// Instances of the pointwise kernel, and which of them a shape gets: the tile and the number of
// splits of K with the least time by a small model of a multiprocessor.
#include "kernels/cuda/pointwise_conv.h"

#include "kernels/cuda/plan_cache.h"
#include "kernels/cuda/pointwise_conv.cuh"

namespace fastdw::cuda {
namespace {

template <class Tiling>
__global__ void __launch_bounds__(Tiling::kThreads, Tiling::kBlocks)
    pointwise_conv(PointwiseKernelParams params) {
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
  int rows, columns, threads, shared_bytes;
};

template <class Tiling>
Variant variant(const char* name) {
  return {name,
          pointwise_conv<Tiling>,
          Tiling::kRows,
          Tiling::kColumns,
          Tiling::kThreads,
          Tiling::kSharedBytes};
}

// Narrow tiles are for few output channels, small ones for few pixels; 64x128 reads few pixels less
// often. By FMA the largest would only cost registers.
constexpr int kVariants = 7;
template <class T, class Math>
Variant whole_variant(int index) {
  using pointwise::Tiling;
  switch (index) {
    case 0:
      if constexpr (sizeof(T) == 2 || std::is_same_v<Math, Tf32>)
        return variant<Tiling<T, Math, 128, 128, 64, 32, true>>("pointwise_conv 128x128");
      [[fallthrough]];
    case 1: return variant<Tiling<T, Math, 128, 64, 64, 32, true>>("pointwise_conv 128x64");
    case 2: return variant<Tiling<T, Math, 64, 64, 32, 32, true>>("pointwise_conv 64x64");
    case 3: return variant<Tiling<T, Math, 128, 32, 32, 32, true>>("pointwise_conv 128x32");
    case 4: return variant<Tiling<T, Math, 128, 16, 32, 16, true>>("pointwise_conv 128x16");
    case 5:
      if constexpr (sizeof(T) == 2 || std::is_same_v<Math, Tf32>)
        return variant<Tiling<T, Math, 64, 128, 32, 32, true>>("pointwise_conv 64x128");
      [[fallthrough]];
    default: return variant<Tiling<T, Math, 64, 32, 32, 16, true>>("pointwise_conv 64x32");
  }
}

constexpr int kMaskedVariants = 2;
template <class T, class Math>
Variant masked_variant(int index) {
  using pointwise::Tiling;
  if (index == 0)
    return variant<Tiling<T, Math, 64, 64, 32, 32, false>>("pointwise_conv 64x64 masked");
  return variant<Tiling<T, Math, 128, 16, 32, 16, false>>("pointwise_conv 128x16 masked");
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
  int64_t group_rows, tiles_per_group, row_tiles, column_tiles, slices;

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
  const int64_t slice = pointwise::kSliceChunks * 16 / element_bytes(params.dtype);
  result.slices = ceil_div(params.channels_in, slice);
  return result;
}

// Cycles of the busiest multiprocessor, roughly: multiply-adds at the A100's rate or 48 bytes of L2
// a cycle, whichever takes longer, and for a thread block that is alone there the latency of
// memory; then half of what all bytes take, spread evenly: of near equals the one that moves less.
double cycles(const PointwiseParams& params, const Variant& variant, const Partition& tiles,
              int64_t splits, const Device& device) {
  const double rate = params.dtype != DType::fp32 ? 1024 : params.tf32 ? 512 : 64;
  const double bytes_per_cycle = 48, latency = 800;
  const double rows = variant.rows, columns = variant.columns;
  const double depth = pointwise::kSliceChunks * 16.0 / element_bytes(params.dtype);
  const double copies = (rows + columns) * 64 / bytes_per_cycle;
  const double products = rows * columns * depth / rate;
  const double slice = copies > products ? copies : products;
  const double slices = static_cast<double>(ceil_div(tiles.slices, splits));
  const double sums = rows * columns * 4 / bytes_per_cycle;
  const double ends = (params.pool ? 0 : sums) + (splits > 1 ? sums * (1 + splits) + latency : 0);
  const double blocks =
      static_cast<double>(ceil_div(tiles.tiles() * splits, device.multiprocessors));
  const double alone = latency + slices * (slice > latency / 3 ? slice : latency / 3) + ends;
  const double busy = blocks * (slices * slice + ends) + latency;
  const double moved = static_cast<double>(tiles.tiles() * splits) * (slices * copies + ends);
  const double second_launch = params.pool && tiles.tiles_per_group > 1 ? 2000 : 0;
  return (alone > busy ? alone : busy) + moved / device.multiprocessors / 2 + second_launch;
}

struct Choice {
  Variant variant;
  Partition tiles;
  int64_t splits;
};

Choice search(const PointwiseParams& params, bool whole, const Device& device) {
  Choice best{};
  double least = -1;
  for (int index = 0; index < (whole ? kVariants : kMaskedVariants); ++index) {
    const Variant variant = variant_of(params, whole, index);
    if (variant.shared_bytes > device.shared_bytes_per_block) continue;
    const Partition tiles = partition(params, variant);
    const bool splittable =
        tiles.tiles() <= kMaxCounters && !(params.pool && tiles.tiles_per_group > 1);
    for (int64_t splits = 1; splits <= (splittable ? tiles.slices : 1) && splits <= 32; ++splits) {
      const double time = cycles(params, variant, tiles, splits, device);
      if (least >= 0 && time >= least) continue;
      least = time;
      best = {variant, tiles, splits};
    }
  }
  return best;
}

Choice choose(const PointwiseParams& params, const Device& device) {
  static auto* cache = new PlanCache<10, Choice>;
  const bool whole = is_whole(params.channels_in, params.dtype) && is_aligned(params.x) &&
                     is_aligned(params.weight);
  return cache->find({static_cast<int64_t>(params.dtype), params.tf32, params.pool, params.images,
                      params.pixels, params.channels_in, params.channels_out, whole,
                      device.multiprocessors, device.shared_bytes_per_block},
                     [&] { return search(params, whole, device); });
}

// Those parts of the kernel's parameters that lie in the workspace.
size_t place_workspace(const PointwiseParams& params, const Choice& choice,
                       PointwiseKernelParams& kernel) {
  const bool tiled_means = params.pool && choice.tiles.tiles_per_group > 1;
  if (kernel.splits == 1 && !tiled_means) return 0;
  if (params.workspace != nullptr) {
    kernel.counters = static_cast<unsigned*>(params.workspace);
    kernel.partial_sums =
        reinterpret_cast<float*>(static_cast<char*>(params.workspace) + kCounterBytes);
  }
  const int64_t floats = tiled_means ? choice.tiles.row_tiles * params.channels_out
                                     : choice.tiles.tiles() * kernel.splits * choice.variant.rows *
                                           choice.variant.columns;
  return kCounterBytes + static_cast<size_t>(floats) * sizeof(float);
}

void add_mean_of_tiles(const PointwiseParams& params, const PointwiseKernelParams& kernel,
                       LaunchList& list) {
  const MeanParams mean{kernel.partial_sums,    params.y,
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
  kernel.tiles_per_group = tiles.tiles_per_group;
  kernel.column_tiles = tiles.column_tiles;
  kernel.slices = tiles.slices;
  kernel.slices_per_split = ceil_div(tiles.slices, choice.splits);
  kernel.splits = static_cast<int>(ceil_div(tiles.slices, kernel.slices_per_split));
  kernel.residual_stride = residual_stride;
  kernel.wide_rows = is_whole(params.channels_out, params.dtype) && is_aligned(params.y) &&
                     is_aligned(params.residual) && is_aligned(params.epilogue.scale) &&
                     is_aligned(params.epilogue.bias);
  kernel.pixels_per_image = params.pool ? params.pixels / params.images : 0;
  LaunchList list;
  list.workspace_bytes = place_workspace(params, choice, kernel);
  const dim3 grid(static_cast<unsigned>(tiles.tiles()), static_cast<unsigned>(kernel.splits));
  list.add(make_launch(choice.variant.name, choice.variant.kernel, grid,
                       static_cast<unsigned>(choice.variant.threads),
                       static_cast<size_t>(choice.variant.shared_bytes), kernel));
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
