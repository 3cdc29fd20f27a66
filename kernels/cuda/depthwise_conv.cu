// Depthwise convolution: which kernel, tiles and grid for a shape.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/depthwise_conv.cuh"
#include "kernels/cuda/depthwise_conv.h"
#include "kernels/cuda/depthwise_conv_direct.cuh"
#include "kernels/cuda/depthwise_conv_tile.h"

namespace fastdw::cuda {
namespace depthwise {

constexpr int kWarpsPerBlock = 4;
constexpr int kDirectThreads = 256;

// 128 registers a thread for 3x3; larger windows have up to 7 x 16 partial sums.
constexpr int least_blocks(int kernel) { return kernel == 3 ? 4 : 2; }

template <class T, int kLanes, class G>
using TapsOf = std::conditional_t<G::kTaps * kLanes <= 72, RegisterTaps<T, kLanes, G::kTaps>,
                                  SharedTaps<T, kLanes, G::kTaps>>;

template <class T, int kLanes, class G>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, least_blocks(G::kKernel))
    walk_kernel(WalkParams params) {
  wait_for_previous_launch();
  walk<T, kLanes, G, TapsOf<T, kLanes, G>>(params);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kDirectThreads) direct_kernel(DirectParams params) {
  wait_for_previous_launch();
  direct<T, kLanes>(params);
}

namespace {

constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kMostTasks = (int64_t{1} << 31) - 1;
constexpr int64_t kSectorBytes = 32;
constexpr int64_t kSharedBytes = 48 * 1024;  // without asking for more
// How often an element of x is loaded at most, on the average. 112x112x32 in fp16: with 2 packs (a
// sector) a warp has 16 lanes of columns for 14 output columns, 8 warps a row load 126 columns of
// 112: 1.125. At batch 1, 19 bands of 6 rows load 148 rows of 112: 1.125 * 1.32 = 1.49.
constexpr double kMostLoads = 1.5;
constexpr int kWarpsPerMultiprocessor = 16;  // that 128 registers a thread allow

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One direction of the window on the first sublattice, which is the largest.
struct Axis {
  int64_t outputs;    // on it
  int64_t read_from;  // input places counted from the first output's first tap on: those that
  int64_t read_end;   // outputs read and that lie in the image

  Axis(int64_t size, int64_t size_out, int64_t kernel, int64_t stride, int64_t dilation,
       int64_t pad)
      : outputs(ceil_div(size_out, dilation)),
        read_from(ceil_div(pad, dilation)),
        read_end(std::min((outputs - 1) * stride + kernel, (size - 1 + pad) / dilation + 1)) {}

  int64_t inside(int64_t from, int64_t end) const {
    return std::max<int64_t>(0, std::min(end, read_end) - std::max(from, read_from));
  }
};

struct Variant {
  int64_t lanes, columns, kernel, stride;

  int64_t own() const { return columns * stride; }
  int64_t halo_lanes() const { return ((columns - 1) * stride + kernel - 1) / own(); }
};

// How a warp's lanes are dealt out.
struct Deal {
  int64_t packs, column_lanes, group_columns, column_groups, pack_groups;
  double loads;  // how often an element of x is loaded, as sectors

  int64_t warps() const { return column_groups * pack_groups; }
};

// Sectors of the loads of one column, over those of its bytes.
double sector_share(const DepthwiseParams& params, int64_t pack_bytes, int64_t packs,
                    int64_t packs_per_warp) {
  if (!params.channels_last || packs_per_warp >= packs) return 1;
  int64_t sectors = 0;
  for (int64_t first = 0; first < packs; first += packs_per_warp) {
    const int64_t end = std::min(first + packs_per_warp, packs) * pack_bytes;
    sectors += (end - 1) / kSectorBytes - first * pack_bytes / kSectorBytes + 1;
  }
  return static_cast<double>(sectors * kSectorBytes) / static_cast<double>(packs * pack_bytes);
}

// With `packs_per_warp` packs; column_groups is 0 where too few lanes remain.
Deal deal_lanes(const DepthwiseParams& params, const Variant& variant, const Axis& columns,
                int64_t packs, int64_t packs_per_warp) {
  Deal deal{};
  deal.packs = packs_per_warp;
  deal.pack_groups = ceil_div(packs, packs_per_warp);
  const int64_t lanes = kWarp / packs_per_warp;
  const int64_t whole_row = std::max(ceil_div(columns.outputs, variant.columns),
                                     ceil_div(columns.read_end, variant.own()));
  deal.column_lanes = std::min(lanes, whole_row);
  deal.group_columns =
      lanes >= whole_row ? columns.outputs : (lanes - variant.halo_lanes()) * variant.columns;
  if (deal.group_columns <= 0) return deal;
  deal.column_groups = ceil_div(columns.outputs, deal.group_columns);
  const auto loaded = [&](int64_t first) {
    const int64_t end = std::min(first + deal.group_columns, columns.outputs);
    return columns.inside(first * variant.stride, (end - 1) * variant.stride + variant.kernel);
  };
  const int64_t last = (deal.column_groups - 1) * deal.group_columns;
  int64_t sum = loaded(last);
  if (last > 0) sum += loaded(0);
  if (deal.column_groups > 2) sum += (deal.column_groups - 2) * loaded(deal.group_columns);
  const int64_t all = std::max<int64_t>(1, columns.inside(0, columns.read_end));
  deal.loads =
      static_cast<double>(sum) / static_cast<double>(all) *
      sector_share(params, variant.lanes * element_bytes(params.dtype), packs, packs_per_warp);
  return deal;
}

// The fewest loads; then as few warps as fill the device, else as many as there can be.
Deal best_deal(const DepthwiseParams& params, const Variant& variant, const Axis& columns,
               int64_t packs, int64_t images, int64_t warps_wanted) {
  Deal best{};
  for (int64_t packs_per_warp = 1; packs_per_warp <= std::min<int64_t>(kWarp, packs);
       ++packs_per_warp) {
    const Deal deal = deal_lanes(params, variant, columns, packs, packs_per_warp);
    if (deal.column_groups == 0) continue;
    const bool fills = deal.warps() * images >= warps_wanted;
    const bool same = best.column_groups > 0 && deal.loads < 1.01 * best.loads;
    const bool better = fills ? deal.warps() < best.warps() : deal.warps() > best.warps();
    if (best.column_groups == 0 || deal.loads < 0.99 * best.loads || (same && better)) best = deal;
  }
  return best;
}

Pitches pitches_of(bool channels_last, int64_t channels, int64_t height, int64_t width,
                   int64_t lanes) {
  if (channels_last) return {height * width * channels, width * channels, channels, lanes};
  return {channels * height * width, width, 1, height * width};
}

template <class Kernel>
void set_common(Kernel& kernel, const DepthwiseParams& params, int64_t lanes) {
  const int64_t channels_out = params.channels_in * params.multiplier;
  kernel.x = params.x;
  kernel.weight = params.weight;
  kernel.y = params.y;
  kernel.epilogue = params.epilogue;
  kernel.x_pitch =
      pitches_of(params.channels_last, params.channels_in, params.height, params.width, lanes);
  kernel.y_pitch =
      pitches_of(params.channels_last, channels_out, params.height_out, params.width_out, lanes);
  kernel.planes = !params.channels_last;
  kernel.multiplier = static_cast<decltype(kernel.multiplier)>(params.multiplier);
  kernel.packs = static_cast<decltype(kernel.packs)>(channels_out / lanes);
}

bool has_packs(const DepthwiseParams& params, int64_t lanes) {
  const auto aligned = [&](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (lanes * element_bytes(params.dtype)) == 0;
  };
  return lanes == 1 ||
         (params.channels_last && params.multiplier == 1 && params.channels_in % lanes == 0 &&
          aligned(params.x) && aligned(params.weight) && aligned(params.y));
}

// Square windows of 3, 5 and 7 at stride 1 and 2, dilated only at stride 1, in 32-bit coordinates.
bool can_walk(const DepthwiseParams& params) {
  const Window& window = params.window;
  const auto small = [](int64_t size, int64_t size_out, int64_t stride, int64_t dilation,
                        int64_t pad) {
    constexpr int64_t most = int64_t{1} << 28;
    return size < most && size_out < most / stride && dilation < most / 1024 && pad < most;
  };
  const bool square = window.kernel_h == window.kernel_w && window.stride_h == window.stride_w;
  const bool plain = window.dilation_h == 1 && window.dilation_w == 1;
  return square && (window.kernel_h == 3 || window.kernel_h == 5 || window.kernel_h == 7) &&
         (window.stride_h == 1 || (window.stride_h == 2 && plain)) &&
         small(params.height, params.height_out, window.stride_h, window.dilation_h,
               window.pad_top) &&
         small(params.width, params.width_out, window.stride_w, window.dilation_w,
               window.pad_left) &&
         params.batch <= kMostGridYZ * kMostGridYZ &&
         params.channels_in * params.multiplier <= kMostTasks;
}

// Bands of output rows: as many as fill the device, as long as the rows that two of them read leave
// x loaded kMostLoads times at most.
int64_t band_count(const Variant& variant, const Axis& rows, double loads, int64_t wanted) {
  const double rows_in = static_cast<double>(rows.read_end - rows.read_from);
  const double spare = std::max(0., kMostLoads / loads - 1) * rows_in;
  const auto allowed = 1 + static_cast<int64_t>(spare) / (variant.kernel - variant.stride);
  return std::max<int64_t>(1, std::min({wanted, allowed, rows.outputs}));
}

template <class T, int kLanes, class G>
KernelLaunch walk_launch(const WalkParams& walk, int64_t warps) {
  const int64_t warp_bytes =
      walk.packs_per_warp * SharedOf<T, kLanes, G, TapsOf<T, kLanes, G>>::kBytes;
  warps = std::max<int64_t>(1, std::min(warps, kSharedBytes / warp_bytes));
  const int64_t z = ceil_div(walk.batch, kMostGridYZ);
  const dim3 grid(static_cast<unsigned>(ceil_div(walk.tasks, warps)),
                  static_cast<unsigned>(ceil_div(walk.batch, z)), static_cast<unsigned>(z));
  return make_launch("depthwise_conv", walk_kernel<T, kLanes, G>, grid,
                     static_cast<unsigned>(warps * kWarp), static_cast<size_t>(warps * warp_bytes),
                     walk);
}

template <class T, int kLanes, int kKernel, int kColumns>
bool plan_walk(const DepthwiseParams& params, const Device& device, LaunchList& list) {
  const Window& window = params.window;
  const Variant variant{kLanes, kColumns, kKernel, window.stride_h};
  WalkParams walk{};
  set_common(walk, params, kLanes);
  const Axis rows(params.height, params.height_out, kKernel, variant.stride, window.dilation_h,
                  window.pad_top);
  const Axis columns(params.width, params.width_out, kKernel, variant.stride, window.dilation_w,
                     window.pad_left);
  const int64_t images = params.batch * window.dilation_h * window.dilation_w;
  const int64_t wanted = int64_t{device.multiprocessors} * kWarpsPerMultiprocessor;
  const Deal deal = best_deal(params, variant, columns, walk.packs, images, wanted);
  const int64_t warps = deal.warps() * images;
  int64_t bands = band_count(variant, rows, deal.loads, ceil_div(wanted, warps));
  const int64_t band_rows = ceil_div(rows.outputs, bands);
  bands = ceil_div(rows.outputs, band_rows);
  const int64_t tasks = deal.warps() * bands * window.dilation_h * window.dilation_w;
  if (tasks > kMostTasks) return false;
  walk.x_row_step = walk.x_pitch.row * window.dilation_h;
  walk.x_column_step = walk.x_pitch.column * window.dilation_w;
  walk.y_row_step = walk.y_pitch.row * window.dilation_h;
  walk.y_column_step = walk.y_pitch.column * window.dilation_w;
  walk.batch = params.batch;
  walk.height = static_cast<int32_t>(params.height);
  walk.width = static_cast<int32_t>(params.width);
  walk.height_out = static_cast<int32_t>(params.height_out);
  walk.width_out = static_cast<int32_t>(params.width_out);
  walk.pad_left = static_cast<int32_t>(window.pad_left);
  walk.pad_top = static_cast<int32_t>(window.pad_top);
  walk.dilation_h = static_cast<int32_t>(window.dilation_h);
  walk.dilation_w = static_cast<int32_t>(window.dilation_w);
  walk.packs_per_warp = static_cast<uint32_t>(deal.packs);
  walk.column_lanes = static_cast<uint32_t>(deal.column_lanes);
  walk.lane_step = walk.planes ? 1 : walk.packs_per_warp;
  walk.pack_groups = static_cast<uint32_t>(deal.pack_groups);
  walk.column_groups = static_cast<uint32_t>(deal.column_groups);
  walk.bands = static_cast<uint32_t>(bands);
  walk.tasks = static_cast<uint32_t>(tasks);
  walk.group_columns = static_cast<int32_t>(deal.group_columns);
  walk.band_rows = static_cast<int32_t>(band_rows);
  // Few warps are spread over all multiprocessors.
  const int64_t per_block = std::clamp<int64_t>(tasks * params.batch / device.multiprocessors, 1,
                                                std::min<int64_t>(kWarpsPerBlock, tasks));
  list.add(variant.stride == 1
               ? walk_launch<T, kLanes, Geometry<kKernel, 1, kColumns>>(walk, per_block)
               : walk_launch<T, kLanes, Geometry<kKernel, 2, kColumns>>(walk, per_block));
  return true;
}

template <class T>
bool plan_walk_of(const DepthwiseParams& params, const Device& device, LaunchList& list) {
  // 16 bytes a lane where the taps of so many channels fit into registers. At 5x5 and 7x7 a tap
  // read from shared memory serves 4 output columns.
  constexpr int kWide = kPackLanes<T>, kWideColumns = kWide == 8 ? 1 : 2;
  switch (params.window.kernel_h) {
    case 3:
      if (has_packs(params, kWide))
        return plan_walk<T, kWide, 3, kWideColumns>(params, device, list);
      if (has_packs(params, 4)) return plan_walk<T, 4, 3, 2>(params, device, list);
      return plan_walk<T, 1, 3, 1>(params, device, list);
    case 5:
      if (has_packs(params, 4)) return plan_walk<T, 4, 5, 4>(params, device, list);
      return plan_walk<T, 1, 5, 1>(params, device, list);
    default:
      if (has_packs(params, 4)) return plan_walk<T, 4, 7, 4>(params, device, list);
      return plan_walk<T, 1, 7, 1>(params, device, list);
  }
}

template <class T, int kLanes>
KernelLaunch plan_direct(const DepthwiseParams& params) {
  DirectParams direct{};
  set_common(direct, params, kLanes);
  direct.height = params.height;
  direct.width = params.width;
  direct.height_out = params.height_out;
  direct.width_out = params.width_out;
  direct.window = params.window;
  direct.strips = ceil_div(params.height_out, kStrip);
  direct.threads = params.batch * direct.packs * direct.strips * params.width_out;
  return make_launch("depthwise_conv, any window", direct_kernel<T, kLanes>,
                     dim3(static_cast<unsigned>(ceil_div(direct.threads, kDirectThreads))),
                     kDirectThreads, 0, direct);
}

template <class T>
LaunchList plan(const DepthwiseParams& params, const Device& device) {
  LaunchList list;
  if (!device.without_depthwise_tiles && plan_depthwise_tile(params, device, list)) return list;
  if (can_walk(params) && plan_walk_of<T>(params, device, list)) return list;
  constexpr int kWide = kPackLanes<T>;
  list.add(has_packs(params, kWide) ? plan_direct<T, kWide>(params) : plan_direct<T, 1>(params));
  return list;
}

}  // namespace
}  // namespace depthwise

LaunchList plan_depthwise_conv(const DepthwiseParams& params, const Device& device) {
  switch (params.dtype) {
    case DType::fp16: return depthwise::plan<__half>(params, device);
    case DType::bf16: return depthwise::plan<__nv_bfloat16>(params, device);
    default: return depthwise::plan<float>(params, device);
  }
}

}  // namespace fastdw::cuda
