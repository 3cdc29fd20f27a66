// Which tile and which instance of the block kernel a shape gets: the least time by a small model
// of a multiprocessor, on request among those alone that move few bytes. Plain arithmetic on the
// host. Where no tile fits, or they take less time so, the convolutions are launched one by one.
#include "kernels/cuda/inverted_residual.h"

#include "kernels/cuda/inverted_residual_tiling.h"
#include "kernels/cuda/plan_cache.h"

namespace fastdw::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

using Params = InvertedResidualParams;

constexpr int64_t kMostThreadBlocks = (int64_t{1} << 31) - 1;
constexpr int64_t kMostPixels = int64_t{1} << 30;  // of an image, counted in 32 bits

// What follows from the shape alone.
struct Sizes {
  int64_t bytes, lanes, slab, slabs, taps, x_pitch, expand_depth;

  explicit Sizes(const Params& params)
      : bytes(element_bytes(params.dtype)),
        lanes(16 / bytes),
        slab(kSlabBytes / bytes),
        slabs(ceil_div(params.channels_hidden, slab)),
        taps(params.window.kernel_h * params.window.kernel_w),
        x_pitch(round_up(params.channels_in, 2 * lanes) + lanes),
        expand_depth(params.expand_weight != nullptr ? x_pitch - lanes : 0) {}
};

// Pixels of x along one side that tiles of `length` outputs read: all of them, and the largest.
struct Reads {
  int64_t sum = 0, most = 0;

  Reads(int64_t size, int64_t size_out, int64_t length, int64_t kernel, int64_t stride,
        int64_t dilation, int64_t pad) {
    const int64_t span = (length - 1) * stride + (kernel - 1) * dilation + 1;
    for (int64_t first = 0; first < size_out; first += length) {
      const int64_t from = first * stride - pad;
      const int64_t pixels = larger(0, smaller(from + span, size) - larger(from, 0));
      sum += pixels;
      most = larger(most, pixels);
    }
  }
};

struct Candidate {
  BlockVariant variant;
  BlockTiling tiling;
  double recomputed;  // pixels of x that all tiles read, each counted as often, of those there are
  double cycles;
};

// The last slab may have 64 or 32 bytes a pixel: then `row_step` and a somewhat longer `pitch` keep
// the rows that StripOrder reads together, and writes, in different banks. A pixel takes 9 chunks.
void spread_rows(const Params& params, const Sizes& sizes, BlockTiling& tiling) {
  tiling.row_step_log2 = 0;
  const int64_t channels = round_up(params.channels_hidden % sizes.slab, 2 * sizes.lanes);
  const int64_t chunks = channels * sizes.bytes / 16;
  if (chunks != 2 && chunks != 4) return;
  const auto spread = [&](int64_t pixels) {
    return pixels % 8 == chunks || pixels % 8 == 8 - chunks;
  };
  for (const bool stores_too : {true, false})
    for (int extra = 0; extra < 8; ++extra)
      for (const int log2 : {0, 1, 2}) {
        const int step = 1 << log2;
        if (stores_too && !spread(int64_t{step} * tiling.columns)) continue;
        if (!spread(step * params.window.stride_h * (tiling.pitch + extra))) continue;
        tiling.row_step_log2 = log2;
        tiling.pitch += extra;
        return;
      }
}

// Pixels: the rectangle of outputs and what lies under it. False: not for this instance.
bool place_pixels(const Params& params, const Sizes& sizes, int64_t images, int64_t rows,
                  int64_t columns, Candidate& candidate) {
  const Window& window = params.window;
  BlockTiling& tiling = candidate.tiling;
  if (images * rows * columns > candidate.variant.rows) return false;
  const Reads down(params.height, params.height_out, rows, window.kernel_h, window.stride_h,
                   window.dilation_h, window.pad_top);
  const Reads across(params.width, params.width_out, columns, window.kernel_w, window.stride_w,
                     window.dilation_w, window.pad_left);
  const int64_t window_rows = (rows - 1) * window.stride_h +
                              (window.kernel_h - 1) * window.dilation_h + 1;
  const int64_t reach = (window.kernel_w - 1) * window.dilation_w + 1;
  const int64_t pitch = (round_up(columns, kFilterStrip) - 1) * window.stride_w + reach;
  if (images * window_rows * pitch > (1 << 14)) return false;  // far beyond any shared memory
  tiling.images = static_cast<int>(images);
  tiling.rows = static_cast<int>(rows);
  tiling.columns = static_cast<int>(columns);
  tiling.tiles_down = static_cast<int>(ceil_div(params.height_out, rows));
  tiling.tiles_across = static_cast<int>(ceil_div(params.width_out, columns));
  tiling.tiles = ceil_div(params.batch, images) * tiling.tiles_down * tiling.tiles_across;
  tiling.window_rows = static_cast<int>(window_rows);
  tiling.window_columns = static_cast<int>((columns - 1) * window.stride_w + reach);
  tiling.pitch = static_cast<int>(pitch);
  spread_rows(params, sizes, tiling);
  tiling.pixels_in = static_cast<int>(round_up(images * down.most * across.most, kWarpTileRows));
  tiling.pixels_out = static_cast<int>(round_up(images * rows * columns, kWarpTileRows));
  candidate.recomputed = static_cast<double>(down.sum * across.sum) /
                         static_cast<double>(params.height * params.width);
  return true;
}

// Channels: slabs over splits, output channels over passes.
void place_channels(const Params& params, const Sizes& sizes, int64_t splits, bool in_passes,
                    Candidate& candidate) {
  BlockTiling& tiling = candidate.tiling;
  tiling.slabs = static_cast<int>(sizes.slabs);
  tiling.slabs_per_split = static_cast<int>(ceil_div(sizes.slabs, splits));
  tiling.splits = static_cast<int>(ceil_div(sizes.slabs, tiling.slabs_per_split));
  tiling.passes = static_cast<int>(ceil_div(params.channels_out, candidate.variant.columns));
  tiling.passes_per_block = in_passes ? tiling.passes : 1;
  tiling.pass_groups = in_passes ? 1 : tiling.passes;
  tiling.filtered_slots = tiling.passes_per_block > 1 ? tiling.slabs_per_split : 1;
  tiling.project_slots = tiling.passes_per_block > 1 ? 2 : 1;
}

// Sums lie over the hidden tile and what follows it, but for tiles that further passes read.
bool place_shared(const Params& params, const Sizes& sizes, int64_t limit, int hidden_slots,
                  Candidate& candidate) {
  BlockTiling& tiling = candidate.tiling;
  const bool expands = params.expand_weight != nullptr;
  const int64_t slab_row = (sizes.slab + sizes.lanes) * sizes.bytes;
  int64_t at = 0;
  auto take = [&](int64_t bytes) {
    const int64_t first = at;
    at += round_up(bytes, 16);
    return static_cast<int>(smaller(first, 1 << 30));
  };
  tiling.hidden_slots = hidden_slots;
  tiling.x_pitch = static_cast<int>(sizes.x_pitch);
  tiling.region_at = take(kRegionBytes);
  tiling.places_at = take(tiling.pixels_in * 8);
  tiling.x_at = take(expands ? tiling.pixels_in * sizes.x_pitch * sizes.bytes : 0);
  tiling.hidden_at =
      take(hidden_slots * tiling.images * tiling.window_rows * tiling.pitch * slab_row);
  tiling.expand_at = take(expands ? sizes.slab * sizes.x_pitch * sizes.bytes : 0);
  tiling.taps_at = take(sizes.taps * (sizes.slab + 4) * 4);
  tiling.raw_taps_at = take(sizes.taps * sizes.slab * sizes.bytes);
  tiling.affine_at = take(2 * kAffineArrays * sizes.slab * 4);
  const int64_t sums = tiling.hidden_at + int64_t{tiling.images} * tiling.rows * tiling.columns *
                                              (candidate.variant.columns + kSumPadding) * 4;
  if (tiling.passes_per_block > 1) at = larger(at, sums);
  tiling.filtered_at = take(tiling.filtered_slots * tiling.pixels_out * slab_row);
  tiling.project_at = take(tiling.project_slots * candidate.variant.columns * slab_row);
  at = larger(at, sums);
  tiling.shared_bytes = static_cast<int>(smaller(at, 1 << 30));
  return at <= limit;
}

int64_t workspace_floats(const BlockTiling& tiling, const BlockVariant& variant) {
  if (tiling.splits == 1) return 0;
  return tiling.tiles * tiling.passes * tiling.splits * tiling.images * tiling.rows *
         tiling.columns * variant.columns;
}

// Multiply-adds a cycle that a multiprocessor reaches.
double multiply_rate(const Params& params) {
  return params.dtype != DType::fp32 ? 330 : params.tf32 ? 165 : 30;
}

// Cycles until the last multiprocessor has done; constants fitted to times of an H100 in fp16, when
// the kernel issued up to 1.64 times as many instructions: too many by now. Of the blocks of V1 and
// V2, one more at each batch at most would be one kernel with instructions 1.64 times as fast.
double cycles_of(const Params& params, const Sizes& sizes, const Candidate& candidate,
                 const Device& device) {
  const BlockTiling& tiling = candidate.tiling;
  const BlockVariant& variant = candidate.variant;
  const double launch = 2500, latency = 6500, slab_latency = 2500, bytes_per_cycle = 15;
  const double taps_per_cycle = 15.5, pixels_per_cycle = 37, sums_per_cycle = 2.4;
  const double hidden = static_cast<double>(
      smaller(params.channels_hidden, tiling.slabs_per_split * sizes.slab));
  const double columns = variant.columns * tiling.passes_per_block;
  const double outputs = tiling.images * tiling.rows * tiling.columns;
  const double strips = static_cast<double>(ceil_div(tiling.columns, kFilterStrip));
  const double filtered = tiling.images * tiling.rows * strips * kFilterStrip;
  const double depth = static_cast<double>(sizes.expand_depth);
  const double taps = static_cast<double>(sizes.taps);
  const double multiplied = tiling.pixels_in * depth * hidden +
                            variant.rows * columns * hidden * (1 + 16.0 / variant.columns);
  const double elements = tiling.pixels_in * (depth > 0 ? depth : hidden) +
                          hidden * (depth + taps + columns) + outputs * columns;
  const double block = latency + tiling.slabs_per_split * slab_latency +
                       multiplied / multiply_rate(params) +
                       filtered * hidden * taps / taps_per_cycle +
                       (depth > 0 ? tiling.pixels_in * hidden / pixels_per_cycle : 0) +
                       elements * static_cast<double>(sizes.bytes) / bytes_per_cycle;
  const double sharing =
      tiling.splits > 1 ? latency + outputs * columns * tiling.splits / sums_per_cycle : 0;
  const int64_t units = tiling.tiles * tiling.pass_groups * tiling.splits;
  const int64_t fitting = smaller(
      smaller(device.shared_bytes_per_multiprocessor / (tiling.shared_bytes + 1024),
              device.threads_per_multiprocessor / variant.threads),
      variant.blocks);
  const int64_t at_once = larger(1, smaller(fitting, ceil_div(units, device.multiprocessors)));
  const double turns = static_cast<double>(ceil_div(units, device.multiprocessors * at_once));
  return launch + turns * (1 + 0.5 * static_cast<double>(at_once - 1)) * block + sharing;
}

BlockVariant variant_of(const Params& params, int index) {
  if (params.dtype == DType::fp16) return inverted_residual_fp16(index);
  if (params.dtype == DType::bf16) return inverted_residual_bf16(index);
  return params.tf32 ? inverted_residual_tf32(index) : inverted_residual_fp32(index);
}

// Sides of tiles worth a look: the whole, its parts, and strips.
struct Sides {
  int64_t lengths[7];
  int count = 0;

  explicit Sides(int64_t size) {
    for (const int64_t parts : {1, 2, 3, 4}) add(ceil_div(size, parts), size);
    for (const int64_t strips : {4, 2, 1}) add(strips * kFilterStrip, size);
  }

  void add(int64_t length, int64_t size) {
    if (length > size) return;
    for (int i = 0; i < count; ++i)
      if (lengths[i] == length) return;
    lengths[count++] = length;
  }
};

class Choice {
 public:
  Choice(const Params& params, const Device& device)
      : params_(params), sizes_(params), device_(device) {
    for (limited_ = params.plan == BlockPlan::fewest_bytes; best_.variant.kernel == nullptr;
         limited_ = false) {
      for (int index = 0; variant_of(params, index).kernel != nullptr; ++index)
        try_variant(variant_of(params, index));
      if (!limited_) break;
    }
  }

  // Its kernel is null where none fits.
  const Candidate& best() const { return best_; }

 private:
  void try_variant(const BlockVariant& variant) {
    const int64_t image = params_.height_out * params_.width_out;
    if (larger(image, params_.height * params_.width) > kMostPixels) return;
    Candidate candidate{variant, {}, 0, 0};
    const Sides sides(params_.width_out);
    for (int i = 0; i < sides.count; ++i) {
      const int64_t columns = sides.lengths[i];
      if (columns > variant.rows) continue;
      const int64_t fewest = ceil_div(params_.height_out, variant.rows / columns);
      for (const int64_t bands : {fewest, fewest + 1, 2 * fewest, 4 * fewest}) {
        if (bands > params_.height_out) break;
        const int64_t rows = ceil_div(params_.height_out, bands);
        const int64_t most_images =
            rows * columns == image ? smaller(params_.batch, variant.rows / image) : 1;
        for (int64_t images = 1; images <= most_images; ++images)
          if (place_pixels(params_, sizes_, images, rows, columns, candidate))
            try_channels(candidate);
      }
    }
  }

  // Expanded at most 1.15 times at about 28 x 28; larger images, which have longer borders, 1.35
  // times, and smaller ones, which give few thread blocks. All splits but one write their sums,
  // which that one reads: at most 0.13 of what the block moves anyway.
  bool moves_much(const Candidate& candidate) const {
    const int64_t read = params_.height * params_.width;
    const int64_t written = params_.height_out * params_.width_out * params_.channels_out;
    const double most = read > 14 * 14 && read <= 28 * 28 ? 1.15 : 1.35;
    const int64_t times = params_.expand_weight != nullptr ? candidate.tiling.pass_groups : 1;
    const int64_t weights =
        params_.channels_hidden * (sizes_.expand_depth + sizes_.taps + params_.channels_out);
    const int64_t moved = weights + params_.batch * (read * params_.channels_in + written);
    const int64_t sums = (candidate.tiling.splits - 1) * params_.batch * written;
    return candidate.recomputed * static_cast<double>(times) > most ||
           8 * static_cast<double>(sums) > 0.13 * static_cast<double>(sizes_.bytes * moved);
  }

  void try_channels(Candidate& candidate) {
    const int64_t passes = ceil_div(params_.channels_out, candidate.variant.columns);
    const int64_t units = candidate.tiling.tiles * passes;
    const bool splittable = 2 * units <= kMaxCounters && units < 2 * device_.multiprocessors;
    for (const bool in_passes : {false, true}) {
      if (in_passes && passes == 1) continue;
      for (int64_t splits = 1; splits <= (splittable ? sizes_.slabs : 1); ++splits) {
        if (splits > 1 && ceil_div(sizes_.slabs, splits) == ceil_div(sizes_.slabs, splits - 1))
          continue;
        place_channels(params_, sizes_, splits, in_passes, candidate);
        if (units * candidate.tiling.splits > kMostThreadBlocks) continue;
        if (limited_ && moves_much(candidate)) continue;
        const int slots =
            params_.expand_weight == nullptr && candidate.tiling.slabs_per_split > 1 ? 2 : 1;
        if (!place_shared(params_, sizes_, device_.shared_bytes_per_block, slots, candidate) &&
            !place_shared(params_, sizes_, device_.shared_bytes_per_block, 1, candidate))
          continue;
        candidate.cycles = cycles_of(params_, sizes_, candidate, device_);
        if (best_.variant.kernel == nullptr || candidate.cycles < best_.cycles) best_ = candidate;
      }
    }
  }

  const Params& params_;
  const Sizes sizes_;
  const Device& device_;
  bool limited_ = false;  // to tiles that move few bytes
  Candidate best_{};
};

Candidate best_candidate(const Params& params, const Device& device) {
  static auto* cache = new PlanCache<24, Candidate>;
  const Window& window = params.window;
  return cache->find(
      {params.plan == BlockPlan::fewest_bytes, params.expand_weight != nullptr,
       static_cast<int64_t>(params.dtype), params.tf32, params.batch, params.height, params.width,
       params.channels_in, params.channels_hidden, params.channels_out, params.height_out,
       params.width_out, window.kernel_h, window.kernel_w, window.stride_h, window.stride_w,
       window.dilation_h, window.dilation_w, window.pad_left, window.pad_top,
       device.multiprocessors, device.shared_bytes_per_block,
       device.shared_bytes_per_multiprocessor, device.threads_per_multiprocessor},
      [&] { return Choice(params, device).best(); });
}

void place_flags(const Params& params, const Sizes& sizes, BlockTiling& tiling) {
  tiling.wide_x = params.channels_in % sizes.lanes == 0 && is_aligned(params.x);
  tiling.wide_expand = params.channels_in % sizes.lanes == 0 && is_aligned(params.expand_weight);
  tiling.wide_taps = is_aligned(params.depthwise_weight);
  tiling.wide_project =
      params.channels_hidden % sizes.lanes == 0 && is_aligned(params.project_weight);
  tiling.wide_y = params.channels_out % 4 == 0 && is_aligned(params.y) &&
                  is_aligned(params.x) && is_aligned(params.project.scale) &&
                  is_aligned(params.project.bias);
  tiling.wide_affine = true;
  for (const Epilogue* epilogue : {&params.expand, &params.depthwise})
    if (!is_aligned(epilogue->scale) || !is_aligned(epilogue->bias)) tiling.wide_affine = false;
  tiling.residual_in_tile = params.residual && params.expand_weight != nullptr &&
                            params.window.stride_h == 1 && params.window.stride_w == 1;
}

FilterKind filter_kind(const Window& window) {
  const int64_t kernel = window.kernel_w, stride = window.stride_w;
  if (window.dilation_w != 1 || (kernel != 3 && kernel != 5) || stride > 2)
    return FilterKind::general;
  if (kernel == 3) return stride == 1 ? FilterKind::k3s1 : FilterKind::k3s2;
  return stride == 1 ? FilterKind::k5s1 : FilterKind::k5s2;
}

ChunkPieces chunk_pieces(int64_t chunks) {
  const int log2 = chunks % 8 == 0 ? 3 : chunks % 4 == 0 ? 2 : 1;
  return {log2, Divisor(ceil_div(chunks, 1 << log2))};
}

void place_divisors(const Params& params, const Sizes& sizes, BlockTiling& tiling) {
  tiling.filter = filter_kind(params.window);
  tiling.taps = static_cast<int>(sizes.taps);
  tiling.strips = static_cast<int>(ceil_div(tiling.columns, kFilterStrip));
  tiling.x_chunks = chunk_pieces(tiling.x_pitch / sizes.lanes - 1);
  tiling.rows_by = Divisor(tiling.rows);
  tiling.columns_by = Divisor(tiling.columns);
  const int64_t left = params.channels_hidden - (sizes.slabs - 1) * sizes.slab;
  const int64_t filtered = round_up(left, 2 * sizes.lanes);  // of the last slab
  const int64_t together = sizes.slab % filtered == 0 ? sizes.slab / filtered : 1;
  const int64_t lines = int64_t{tiling.images} * tiling.rows;
  tiling.lines_by[0] = Divisor(lines);
  tiling.lines_by[1] = Divisor(round_up(lines, together));
}

}  // namespace

LaunchList plan_inverted_residual(const InvertedResidualParams& params, const Device& device) {
  const Candidate best = best_candidate(params, device);
  const bool fits = best.variant.kernel != nullptr;
  if (!fits || params.plan == BlockPlan::fastest || params.plan == BlockPlan::separate) {
    const LaunchList separate = plan_block_one_by_one(params, device);
    if (!fits || params.plan == BlockPlan::separate || separate.cycles < best.cycles)
      return separate;
  }
  InvertedResidualKernelParams kernel{params, best.tiling};
  place_flags(params, Sizes(params), kernel.tiling);
  place_divisors(params, Sizes(params), kernel.tiling);
  const BlockTiling& tiling = kernel.tiling;
  const int64_t units = tiling.tiles * tiling.pass_groups * tiling.splits;
  LaunchList list;
  list.counts = tiling.splits > 1;
  list.workspace_bytes = 4 * static_cast<size_t>(workspace_floats(tiling, best.variant));
  list.add(make_launch(best.variant.name, best.variant.kernel, dim3(static_cast<unsigned>(units)),
                       static_cast<unsigned>(best.variant.threads),
                       static_cast<size_t>(tiling.shared_bytes), kernel));
  return list;
}

}  // namespace fastdw::cuda
