// Whether the workers share a block of a planned network by rows, or by its hidden channels. By
// rows two workers both expand the rows between them, and of 7 rows one takes 4. By hidden channels
// each takes half of the weights and of the work, but the partial sums of the projection have to
// be written and added. The shape alone decides, never the number of threads: a thread that is
// alone takes the same shares, and adds the same sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/params.h"

namespace fastdw {

constexpr int64_t kHiddenShares = 2;
// What writing, fetching from the other core and adding one partial sum costs, in multiply-adds.
constexpr double kMultiplyAddsPerPartialSum = 24;

// The share of a block's work that must be saved where there are no sums to add.
constexpr double kWorthSharing = 0.03;

// Multiply-adds of the output rows [first, last), with all that they need of the expansion.
inline double work_of_rows(const InvertedResidualParams& params, int64_t first, int64_t last) {
  const Window& window = params.window;
  const int64_t reach = (window.kernel_h - 1) * window.dilation_h + 1;
  const int64_t top = first * window.stride_h - window.pad_top;
  const int64_t bottom = (last - 1) * window.stride_h - window.pad_top + reach;
  const int64_t rows_in = std::clamp<int64_t>(bottom, 0, params.height) -
                          std::clamp<int64_t>(top, 0, params.height);
  const double expanded = params.has_expand ? rows_in * params.width * params.channels_in : 0;
  const double taps = window.kernel_h * window.kernel_w;
  const int64_t projected = params.has_project ? params.channels_out : 0;
  return params.channels_hidden *
         (expanded + (last - first) * params.width_out * (taps + projected));
}

inline int64_t hidden_shares_of(const InvertedResidualParams& params) {
  const int64_t rows = params.height_out, half = rows / 2;
  if (channel_blocks(params.channels_hidden) < kHiddenShares) return 1;
  const double larger_half =
      std::max(half > 0 ? work_of_rows(params, 0, half) : 0, work_of_rows(params, half, rows));
  const double all = work_of_rows(params, 0, rows);
  const double saved = larger_half - all / 2;
  if (!params.has_project) return saved > kWorthSharing * all ? kHiddenShares : 1;
  const double partial_sums = kHiddenShares * rows * params.width_out * params.channels_out;
  return saved > partial_sums * kMultiplyAddsPerPartialSum ? kHiddenShares : 1;
}

}  // namespace fastdw
