// The depthwise convolution of 3x3 windows by tiles: how a shape is cut.
#include "kernels/cuda/depthwise_conv_tile.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/depthwise_conv_tile.cuh"
#include "kernels/cuda/plan_cache.h"

namespace fastdw::cuda {
namespace depthwise {

constexpr int least_tile_blocks(int columns) { return columns == 1 ? 3 : 2; }

template <class T, class G>
__global__ void __launch_bounds__(kTileThreads, least_tile_blocks(G::kColumns))
    tile_kernel(TileParams params) {
  tile<T, G>(params);
}

namespace {

constexpr int64_t kMostGridYZ = 65535;
constexpr int64_t kSharedBytes = 48 * 1024;  // without asking for more
constexpr int64_t kBankBytes = 128;          // of all banks
constexpr int64_t kMostInImage = int64_t{1} << 30;
constexpr int64_t kRegisters = 65536;
// How often an element of x is loaded at most. At batch 1 tiles that load up to 2.25 times would,
// as cycles_of has them, save MobileNets' shapes at most 6 % of the cycles, mostly 0 to 2 %.
constexpr double kMostLoads = 1.5;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct TileShape {
  int64_t batch, height, width, channels, height_out, width_out, stride, element_bytes;

  int64_t chunks() const { return channels * element_bytes / kChunkBytes; }
  int64_t packs(int64_t chunks_of_block) const {
    return chunks_of_block * kChunkBytes / element_bytes / kTileLanes;
  }
  int64_t in(int64_t outputs) const { return (outputs - 1) * stride + kTileKernel; }
};

// What a thread block gets.
struct Cut {
  int64_t chunks, across, strips;       // threads: by 16 bytes of a pixel, columns, rows
  int64_t thread_columns, strip_rows;  // outputs of each thread

  int64_t columns() const { return across * thread_columns; }
  int64_t rows() const { return strips * strip_rows; }
};

// In a staged row of x, from the first columns of threads to the second ones.
int64_t part_bytes(const TileShape& shape, const Cut& cut) {
  return ceil_div(shape.in(cut.columns()), cut.thread_columns * shape.stride) * cut.chunks *
         kChunkBytes;
}

// Whether the threads of the next strip begin at the bank after those of the last column.
bool meets_no_bank(const TileShape& shape, const Cut& cut, int64_t row_bytes) {
  const int64_t across = cut.across * cut.chunks * kChunkBytes;
  return (cut.strip_rows * shape.stride * row_bytes - across) % kBankBytes == 0;
}

int64_t staged_row_bytes(const TileShape& shape, const Cut& cut) {
  const int64_t least = part_bytes(shape, cut) * cut.thread_columns * shape.stride;
  for (int64_t bytes = least; bytes < least + kBankBytes; bytes += kChunkBytes)
    if (meets_no_bank(shape, cut, bytes)) return bytes;
  return least;
}

int64_t shared_bytes(const TileShape& shape, const Cut& cut) {
  return shape.in(cut.rows()) * staged_row_bytes(shape, cut);
}

int64_t threads_of(const TileShape& shape, const Cut& cut) {
  const int64_t computing = shape.packs(cut.chunks) * cut.across * cut.strips;
  const int64_t copying = cut.chunks * shape.in(cut.columns());  // of one row at least
  return ceil_div(std::max(computing, copying), 32) * 32;
}

struct Tiles {
  int64_t groups, columns, rows;

  Tiles(const TileShape& shape, const Cut& cut)
      : groups(ceil_div(shape.chunks(), cut.chunks)),
        columns(ceil_div(shape.width_out, cut.columns())),
        rows(ceil_div(shape.height_out, cut.rows())) {}
};

// Instructions of a thread, as the machine code has them.
double instructions_of(const TileShape& shape, const Cut& cut, int64_t threads) {
  const int64_t rows_at_once = threads / (cut.chunks * shape.in(cut.columns()));
  const auto copies = static_cast<double>(ceil_div(shape.in(cut.rows()), rows_at_once));
  const double row = shape.stride == 1 ? (cut.thread_columns == 1 ? 70 : 128)
                                       : (cut.thread_columns == 1 ? 86 : 150);
  const double first_rows = shape.stride == 1 ? 50 : 25;
  return 200 + first_rows * static_cast<double>(cut.thread_columns) + 12 * copies +
         row * static_cast<double>(cut.strip_rows);
}

// How often an element of x is loaded.
double loads_of(const TileShape& shape, const Tiles& tiles) {
  const auto overlap = static_cast<double>(kTileKernel - shape.stride);
  const double more_rows = static_cast<double>(tiles.rows - 1) * overlap;
  const double more_columns = static_cast<double>(tiles.columns - 1) * overlap;
  return (1 + more_rows / static_cast<double>(shape.height)) *
         (1 + more_columns / static_cast<double>(shape.width));
}

// Bytes of x and y that go through the L2: whole sectors, and pieces of less than 128 bytes dearer.
double moved_bytes(const TileShape& shape, const Cut& cut, const Tiles& tiles) {
  const auto pixels_in = static_cast<double>(shape.height * shape.width);
  const auto pixels_out = static_cast<double>(shape.height_out * shape.width_out);
  const double dearer = cut.chunks >= 8 ? 1 : cut.chunks >= 4 ? 1.05 : 1.2;
  const double sectors =
      static_cast<double>(cut.chunks + cut.chunks % 2) / static_cast<double>(cut.chunks);
  return (loads_of(shape, tiles) * pixels_in + pixels_out) * dearer * sectors *
         static_cast<double>(shape.batch * shape.channels * shape.element_bytes);
}

// About how many cycles of a multiprocessor the launch takes: it issues 4 instructions a cycle at
// best, the L2 gives it about 24 bytes, a thread block waits once for what it copies, and a warp
// alone needs kAlone cycles for one. Blocks of one round compute when all of them have copied.
double cycles_of(const TileShape& shape, const Cut& cut, const Device& device) {
  constexpr double kIssued = 2.6, kBytes = 24, kLatency = 1000, kAlone = 2.5;
  const Tiles tiles(shape, cut);
  const int64_t threads = threads_of(shape, cut);
  const double instructions = instructions_of(shape, cut, threads);
  const auto warps = static_cast<double>(threads / 32);
  const int64_t all_blocks = tiles.groups * tiles.columns * tiles.rows * shape.batch;
  const auto blocks = static_cast<double>(ceil_div(all_blocks, device.multiprocessors));
  const double issue = blocks * instructions * warps / kIssued;
  const double moved =
      moved_bytes(shape, cut, tiles) / static_cast<double>(all_blocks) * blocks / kBytes;
  const int64_t registers = cut.thread_columns == 1 ? 80 : 104;
  const auto resident = static_cast<double>(std::max<int64_t>(
      1, std::min({device.threads_per_multiprocessor / threads, kRegisters / registers / threads,
                   device.shared_bytes_per_multiprocessor / (shared_bytes(shape, cut) + 1024)})));
  const double rounds = std::max(1., blocks / resident);
  const double waiting = std::ceil(rounds) * (kLatency + kAlone * instructions);
  const double conflicts = meets_no_bank(shape, cut, staged_row_bytes(shape, cut)) ? 1 : 1.03;
  return conflicts * (std::max({issue, moved, waiting}) + std::min(issue, moved) / rounds +
                      0.1 * (issue + moved));
}

// Calls consider(cut) for the ways to cut that are worth a look.
template <class Consider>
void cuts(const TileShape& shape, int64_t chunks, int64_t thread_columns,
          const Consider& consider) {
  const int64_t all_across = ceil_div(shape.width_out, thread_columns);
  int64_t last = 0;
  for (int64_t parts = ceil_div(all_across, 32); parts <= all_across; ++parts) {
    const int64_t across = ceil_div(all_across, parts);
    if (across == last) continue;
    if (last > 0 && across < 4) break;
    last = across;
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 10, 14}) {
      if (rows > shape.height_out) break;
      for (int64_t strips = 1; strips <= ceil_div(shape.height_out, rows); ++strips) {
        if (shape.packs(chunks) * across * strips > kTileThreads) break;
        consider(Cut{chunks, across, strips, thread_columns, rows});
      }
    }
  }
}

// Of all ways to cut the quickest, as cycles_of has it.
Cut best_cut(const TileShape& shape, const Device& device) {
  Cut best{};
  double least = 0;
  const auto consider = [&](const Cut& cut) {
    if (loads_of(shape, Tiles(shape, cut)) > kMostLoads) return;
    if (threads_of(shape, cut) > kTileThreads || shared_bytes(shape, cut) > kSharedBytes) return;
    const double cycles = cycles_of(shape, cut, device);
    if (best.chunks > 0 && cycles >= least) return;
    best = cut;
    least = cycles;
  };
  for (const int64_t chunks : {2, 4, 6, 8, 1, 3, 5, 7}) {
    if (chunks > shape.chunks()) continue;
    const bool halves_sectors = chunks % 2 == 1 && shape.chunks() % 2 == 0;
    const bool wastes = chunks % 2 == 1 && shape.chunks() % chunks != 0;
    if (halves_sectors || wastes) continue;
    for (const int64_t thread_columns : {1, 2}) cuts(shape, chunks, thread_columns, consider);
  }
  return best;
}

Cut cut_of(const TileShape& shape, const Device& device) {
  static auto* cache = new PlanCache<11, Cut>;
  return cache->find({shape.batch, shape.height, shape.width, shape.channels, shape.height_out,
                      shape.width_out, shape.stride, shape.element_bytes, device.multiprocessors,
                      device.shared_bytes_per_multiprocessor, device.threads_per_multiprocessor},
                     [&] { return best_cut(shape, device); });
}

bool is_for_tiles(const DepthwiseParams& params) {
  const Window& window = params.window;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % kChunkBytes == 0;
  };
  const bool is_window = window.kernel_h == kTileKernel && window.kernel_w == kTileKernel &&
                         window.dilation_h == 1 && window.dilation_w == 1 &&
                         window.stride_h == window.stride_w && window.stride_h <= 2;
  const int64_t largest = std::max({params.height + window.pad_top, params.height_out,
                                    params.width + window.pad_left, params.width_out});
  return is_window && params.channels_last && params.multiplier == 1 &&
         params.channels_in * element_bytes(params.dtype) % kChunkBytes == 0 &&
         aligned(params.x) && aligned(params.weight) && aligned(params.y) &&
         aligned(params.epilogue.scale) && aligned(params.epilogue.bias) &&
         params.batch <= kMostGridYZ && params.height_out <= kMostGridYZ &&
         params.channels_in <= kMostInImage / 64 && largest <= kMostGridYZ &&
         (largest + 256) * (largest + 64) * params.channels_in <= kMostInImage;
}

template <class T>
auto tile_kernel_of(int64_t stride, int64_t columns) -> void (*)(TileParams) {
  if (stride == 1)
    return columns == 1 ? tile_kernel<T, TileGeometry<1, 1>> : tile_kernel<T, TileGeometry<1, 2>>;
  return columns == 1 ? tile_kernel<T, TileGeometry<2, 1>> : tile_kernel<T, TileGeometry<2, 2>>;
}

template <class T>
KernelLaunch tile_launch(const DepthwiseParams& params, const TileShape& shape, const Cut& cut) {
  const Tiles tiles(shape, cut);
  TileParams tile{};
  tile.x = params.x;
  tile.weight = params.weight;
  tile.y = params.y;
  tile.epilogue = params.epilogue;
  tile.x_image = shape.height * shape.width * shape.channels;
  tile.y_image = shape.height_out * shape.width_out * shape.channels;
  tile.height = static_cast<int32_t>(shape.height);
  tile.width = static_cast<int32_t>(shape.width);
  tile.height_out = static_cast<int32_t>(shape.height_out);
  tile.width_out = static_cast<int32_t>(shape.width_out);
  tile.channels = static_cast<int32_t>(shape.channels);
  tile.pad_top = static_cast<int32_t>(params.window.pad_top);
  tile.pad_left = static_cast<int32_t>(params.window.pad_left);
  tile.channels_of_block =
      static_cast<int32_t>(cut.chunks * kChunkBytes / shape.element_bytes);
  tile.strips = static_cast<int32_t>(cut.strips);
  tile.strip_rows = static_cast<int32_t>(cut.strip_rows);
  tile.rows_in = static_cast<int32_t>(shape.in(cut.rows()));
  const int64_t columns_in = shape.in(cut.columns()), threads = threads_of(shape, cut);
  tile.groups = Divisor(tiles.groups);
  tile.chunks = Divisor(cut.chunks);
  tile.columns_in = Divisor(columns_in);
  tile.packs = Divisor(shape.packs(cut.chunks));
  tile.threads_across = Divisor(cut.across);
  tile.rows_at_once = static_cast<int32_t>(threads / (cut.chunks * columns_in));
  tile.pixel_bytes = static_cast<int32_t>(cut.chunks * kChunkBytes);
  tile.row_bytes = static_cast<int32_t>(staged_row_bytes(shape, cut));
  tile.part_bytes = static_cast<int32_t>(part_bytes(shape, cut));
  const dim3 grid(static_cast<unsigned>(tiles.groups * tiles.columns),
                  static_cast<unsigned>(tiles.rows), static_cast<unsigned>(shape.batch));
  return make_launch("depthwise_conv, tiles", tile_kernel_of<T>(shape.stride, cut.thread_columns),
                     grid, static_cast<unsigned>(threads),
                     static_cast<size_t>(shared_bytes(shape, cut)), tile);
}

}  // namespace
}  // namespace depthwise

bool plan_depthwise_tile(const DepthwiseParams& params, const Device& device, LaunchList& list) {
  using namespace depthwise;
  if (!is_for_tiles(params)) return false;
  const TileShape shape{params.batch,      params.height,    params.width,
                        params.channels_in, params.height_out, params.width_out,
                        params.window.stride_h, element_bytes(params.dtype)};
  const Cut cut = cut_of(shape, device);
  if (cut.chunks == 0) return false;
  const Tiles tiles(shape, cut);
  if (tiles.groups * tiles.columns >= int64_t{1} << 31) return false;
  switch (params.dtype) {
    case DType::fp16: list.add(tile_launch<__half>(params, shape, cut)); break;
    case DType::bf16: list.add(tile_launch<__nv_bfloat16>(params, shape, cut)); break;
    default: list.add(tile_launch<float>(params, shape, cut));
  }
  return true;
}

}  // namespace fastdw::cuda
