// y[n, r, q, o] =
//   act(scale[o] sum_{i,j} w[o][i][j] x[n, r s - top + i d, q s - left + j d, o / m] + bias[o])
// A warp walks down a band of rows. A lane owns a pack of channels and the input columns from its
// first output's leftmost tap on; columns further right come from the next lanes by shuffle, rows
// above live on as partial sums: a warp loads no element twice. NHWC and planes (NCHW) differ in
// their pitches only. A dilated filter at stride 1 is d x d plain ones, each on its own sublattice.
#pragma once

#include "kernels/cuda/depthwise_conv_task.cuh"
#include "kernels/cuda/dtype.cuh"
#include "kernels/cuda/epilogue.cuh"

namespace fastdw::cuda::depthwise {

// The value of the lane so many further, or zeros.
template <class V>
__device__ __forceinline__ V from_lane_further(const V& value, unsigned lanes, bool inside) {
  constexpr int kWords = (sizeof(V) + 3) / 4;
  uint32_t words[kWords] = {};
  __builtin_memcpy(words, &value, sizeof(V));
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const uint32_t word = __shfl_down_sync(0xffffffffu, words[i], lanes);
    words[i] = inside ? word : 0u;
  }
  V result;
  __builtin_memcpy(&result, words, sizeof(V));
  return result;
}

template <int kCount, class T, int kLanes>
__device__ __forceinline__ Pack<T, kCount> part_of(const Pack<T, kLanes>& pack, int first) {
  Pack<T, kCount> parts[kLanes / kCount];
  __builtin_memcpy(parts, &pack, sizeof(pack));
  return parts[first / kCount];
}

// Values for each of a lane's channels, in shared memory: rows of packs of at most 4, each warp's
// its own and every warp's alike.
template <int kLanes, int kRows>
struct SharedRows {
  static constexpr int kPart = kLanes < 4 ? kLanes : 4, kParts = kLanes / kPart;
  using Part = Pack<float, kPart>;
  static constexpr int kBytes = kRows * kLanes * static_cast<int>(sizeof(float));  // a pack

  Part* parts;  // of the lane's pack
  int packs;

  __device__ __forceinline__ SharedRows(unsigned char* shared, const Task& task, int packs_per_warp)
      : parts(reinterpret_cast<Part*>(shared) + task.pack_in_warp), packs(packs_per_warp) {}

  __device__ __forceinline__ void put(const float (&values)[kLanes], int row, bool inside) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      Part part;
#pragma unroll
      for (int c = 0; c < kPart; ++c) part.lane[c] = values[i * kPart + c];
      store_shared_if(parts + (row * kParts + i) * packs, part, inside);
    }
  }

  __device__ __forceinline__ void put_one(float value, int row, int channel, bool inside) const {
    Part* part = parts + (row * kParts + channel / kPart) * packs;
    store_shared_if(reinterpret_cast<float*>(part) + channel % kPart, value, inside);
  }

  __device__ __forceinline__ void get(float (&values)[kLanes], int row) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const Part part = load_shared(parts + (row * kParts + i) * packs);
#pragma unroll
      for (int c = 0; c < kPart; ++c) values[i * kPart + c] = part.lane[c];
    }
  }
};

// The taps of a lane's channels as fp32, the scale multiplied in: in registers, 72 for 3x3 and 8
// channels, or, where they are more, in shared memory.
template <class T, int kLanes, int kTaps>
struct RegisterTaps {
  static constexpr int kSharedRows = 0;
  float taps[kTaps][kLanes];

  template <class Rows>
  __device__ __forceinline__ RegisterTaps(const T* weight, const float (&scale)[kLanes],
                                          const Task& task, const Rows&, int) {
#pragma unroll
    for (int part = 0; part < kTaps; ++part) {
      float values[kLanes];
      unpack(values, load_global_or_zero(reinterpret_cast<const Pack<T, kLanes>*>(weight) + part,
                                         task.active));
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const int place = part * kLanes + i;
        taps[place % kTaps][place / kTaps] = values[i] * scale[place / kTaps];
      }
    }
  }

  template <class Rows>
  __device__ __forceinline__ void get(float (&values)[kLanes], int tap, const Rows&) const {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = taps[tap][i];
  }
};

template <class T, int kLanes, int kTaps>
struct SharedTaps {
  static constexpr int kSharedRows = kTaps;

  // The lanes of a pack share in loading its taps, kLanes channels by kTaps that lie together.
  template <class Rows>
  __device__ __forceinline__ SharedTaps(const T* weight, const float (&scale)[kLanes],
                                        const Task& task, const Rows& rows, int column_lanes) {
#pragma unroll 1
    for (int first = 0; first < kTaps; first += column_lanes) {
      const int part = first + task.column_lane;
      const bool inside = task.dealt && part < kTaps;
      float values[kLanes];
      unpack(values, load_global_or_zero(reinterpret_cast<const Pack<T, kLanes>*>(weight) + part,
                                         inside && task.active));
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const int place = part * kLanes + i, channel = place / kTaps;
        float factor = scale[0];
#pragma unroll
        for (int c = 1; c < kLanes; ++c) factor = channel == c ? scale[c] : factor;
        rows.put_one(values[i] * factor, 1 + place % kTaps, channel, inside);
      }
    }
  }

  template <class Rows>
  __device__ __forceinline__ void get(float (&values)[kLanes], int tap, const Rows& rows) const {
    rows.get(values, 1 + tap);
  }
};

// The rows of a band, one after another, as a lane sees them; ends are exclusive.
template <class T, int kLanes, class G>
struct InputRows {
  using Column = Pack<T, kLanes>;

  const WalkParams& params;
  const T* next;  // the lane's first column in the next row
  int row, row_end;
  unsigned columns_inside;  // a bit for each of the lane's columns
  int lanes_right;          // lanes with columns of this row to the right

  // Columns and rows count from the left- and topmost tap of the sublattice's first output.
  __device__ __forceinline__ InputRows(const WalkParams& walk, const Task& task, int first_column,
                                       int column_end, int from_row, int rows)
      : params(walk),
        row(task.offset_h - params.pad_top + from_row * params.dilation_h),
        row_end(row + rows * params.dilation_h),
        columns_inside(0),
        lanes_right(static_cast<int>(params.column_lanes) - 1 - task.column_lane) {
    if (row_end > params.height) row_end = params.height;
    const int from = first_column + task.column_lane * G::kOwn;
    const int column = task.offset_w - params.pad_left + from * params.dilation_w;
#pragma unroll
    for (int i = 0; i < G::kOwn; ++i) {
      const int place = column + i * params.dilation_w;
      const bool inside =
          task.active && from + i < column_end && place >= 0 && place < params.width;
      columns_inside |= static_cast<unsigned>(inside) << i;
    }
    next = static_cast<const T*>(params.x) + row * params.x_pitch.row +
           column * params.x_pitch.column + task.pack / params.multiplier * params.x_pitch.pack +
           task.image * params.x_pitch.image;
  }

  __device__ __forceinline__ void load(Column (&columns)[G::kOwn]) {
    const bool inside = row >= 0 && row < row_end;
#pragma unroll
    for (int i = 0; i < G::kOwn; ++i)
      columns[i] =
          load_global_or_zero(reinterpret_cast<const Column*>(next + i * params.x_column_step),
                              inside && (columns_inside >> i & 1));
    next += params.x_row_step;
    row += params.dilation_h;
  }

  // Channels [first, first + kCount). To the right of the last lane the image has ended, or its
  // output columns are not stored.
  template <int kCount>
  __device__ __forceinline__ void gather(float (&window)[G::kWindow][kCount],
                                         const Column (&columns)[G::kOwn], int first) const {
#pragma unroll
    for (int i = 0; i < G::kWindow; ++i) {
      const int lanes = i / G::kOwn;
      auto part = part_of<kCount>(columns[i % G::kOwn], first);
      if (lanes > 0) part = from_lane_further(part, lanes * params.lane_step, lanes <= lanes_right);
      unpack(window[i], part);
    }
  }
};

template <class T, int kLanes, class G>
struct OutputRows {
  const WalkParams& params;
  T* next;
  bool inside[G::kColumns];

  __device__ __forceinline__ OutputRows(const WalkParams& walk, const Task& task, int first_column,
                                        int column_end, int first_row)
      : params(walk) {
    const int from = first_column + task.column_lane * G::kColumns;
#pragma unroll
    for (int q = 0; q < G::kColumns; ++q) inside[q] = task.active && from + q < column_end;
    next = static_cast<T*>(params.y) + task.pack * params.y_pitch.pack +
           task.image * params.y_pitch.image +
           (task.offset_h + int64_t{first_row} * params.dilation_h) * params.y_pitch.row +
           (task.offset_w + int64_t{from} * params.dilation_w) * params.y_pitch.column;
  }

  __device__ __forceinline__ void store(const float (&sums)[G::kColumns][kLanes],
                                        const float (&bias)[kLanes], const Activate& activate) {
#pragma unroll
    for (int q = 0; q < G::kColumns; ++q) {
      float values[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = sums[q][i] + bias[i];
      activate.apply(values);
      store_global_if(reinterpret_cast<Pack<T, kLanes>*>(next + q * params.y_column_step),
                      pack<T>(values), inside[q]);
    }
    next += params.y_row_step;
  }
};

// Adds a row of x under tap row i to the sums of an output row, kCount channels from `first` on.
template <int kCount, int kLanes, class G, class Taps, class Rows>
__device__ __forceinline__ void add_row(float (&sums)[G::kColumns][kLanes],
                                        const float (&window)[G::kWindow][kCount], const Taps& taps,
                                        const Rows& shared, int i, int first) {
#pragma unroll
  for (int j = 0; j < G::kKernel; ++j) {
    float tap[kLanes];
    taps.get(tap, i * G::kKernel + j, shared);
#pragma unroll
    for (int q = 0; q < G::kColumns; ++q)
#pragma unroll
      for (int c = 0; c < kCount; ++c)
        sums[q][first + c] =
            fmaf(window[q * G::kStride + j][c], tap[first + c], sums[q][first + c]);
  }
}

// Step by step, kStride rows of x each: the first of them ends the oldest output row under way,
// then a new one begins.
template <class T, int kLanes, class G, class Taps, class Rows>
__device__ __forceinline__ void walk_band(InputRows<T, kLanes, G>& x, OutputRows<T, kLanes, G>& y,
                                          const Taps& taps, const Rows& shared,
                                          const Activate& activate, int rows_out) {
  constexpr int kOldest = G::kUnderWay - 1;
  // Register pressure: with the taps in registers, the channels of one word at a time.
  constexpr int kCount = Taps::kSharedRows == 0 && sizeof(T) == 2 && kLanes > 1 ? 2 : kLanes;
  float sums[G::kUnderWay][G::kColumns][kLanes] = {};
  Pack<T, kLanes> ahead[G::kOwn];
  x.load(ahead);
#pragma unroll 1
  for (int step = 0; step < rows_out + G::kUnderWay; ++step) {
    float ended[G::kColumns][kLanes];
#pragma unroll
    for (int row = 0; row < G::kStride; ++row) {
      Pack<T, kLanes> columns[G::kOwn];
#pragma unroll
      for (int i = 0; i < G::kOwn; ++i) columns[i] = ahead[i];
      x.load(ahead);
#pragma unroll
      for (int first = 0; first < kLanes; first += kCount) {
        float window[G::kWindow][kCount];
        x.gather(window, columns, first);
        if (row == 0) {
#pragma unroll
          for (int q = 0; q < G::kColumns; ++q)
#pragma unroll
            for (int c = first; c < first + kCount; ++c) {
              ended[q][c] = sums[kOldest][q][c];
#pragma unroll
              for (int a = kOldest; a > 0; --a) sums[a][q][c] = sums[a - 1][q][c];
              sums[0][q][c] = 0.f;
            }
          add_row<kCount, kLanes, G>(ended, window, taps, shared, G::kKernel - 1, first);
        }
#pragma unroll
        for (int a = kOldest; a >= 0; --a)
          add_row<kCount, kLanes, G>(sums[a], window, taps, shared, a * G::kStride + row, first);
      }
      if (row == 0 && step >= G::kUnderWay) {
        float bias[kLanes];
        shared.get(bias, 0);
        y.store(ended, bias, activate);
      }
    }
  }
}

template <class T, int kLanes, class G, class Taps>
using SharedOf = SharedRows<kLanes, 1 + Taps::kSharedRows>;  // the bias, then the taps

template <class T, int kLanes, class G, class Taps>
__device__ __forceinline__ void walk(const WalkParams& params) {
  const uint32_t index = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (index >= params.tasks) return;  // the whole warp
  const Task task(params, index);
  if (task.image >= params.batch) return;
  using Rows = SharedOf<T, kLanes, G, Taps>;
  const int packs = static_cast<int>(params.packs_per_warp);
  const Rows shared(dynamic_shared_memory() + threadIdx.x / kWarp * packs * Rows::kBytes, task,
                    packs);
  const int64_t channel = int64_t{task.pack} * kLanes;
  float scale[kLanes], bias[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    scale[i] = scale_of(params.epilogue, channel + i, task.active);
    bias[i] = bias_of(params.epilogue, channel + i, task.active);
  }
  shared.put(bias, 0, task.dealt && task.column_lane == 0);
  const Taps taps(static_cast<const T*>(params.weight) + channel * G::kTaps, scale, task, shared,
                  static_cast<int>(params.column_lanes));
  __syncwarp();
  const auto smaller = [](int a, int b) { return a < b ? a : b; };
  const int rows = (params.height_out - task.offset_h + params.dilation_h - 1) / params.dilation_h;
  const int columns =
      (params.width_out - task.offset_w + params.dilation_w - 1) / params.dilation_w;
  const int first_row = static_cast<int>(task.band) * params.band_rows;
  const int rows_out = smaller(params.band_rows, rows - first_row);
  const int first_column = static_cast<int>(task.column_group) * params.group_columns;
  const int column_end = smaller(first_column + params.group_columns, columns);
  if (rows_out <= 0 || first_column >= column_end) return;  // a small sublattice; the whole warp
  InputRows<T, kLanes, G> x(params, task, first_column * G::kStride,
                            (column_end - 1) * G::kStride + G::kKernel, first_row * G::kStride,
                            (rows_out - 1) * G::kStride + G::kKernel);
  OutputRows<T, kLanes, G> y(params, task, first_column, column_end, first_row);
  const Activate activate(params.epilogue.activation);
  walk_band(x, y, taps, shared, activate, rows_out);
}

}  // namespace fastdw::cuda::depthwise
