// Where the channels of a part of a concatenation go: they may be shuffled, and only some of the
// whole be wanted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/params.h"

namespace fastdw {

// The joined channels, read as [groups][of_group], are transposed; [first, first + channels) of the
// result is what is wanted.
struct ChannelShuffle {
  int64_t groups, of_group, first, channels;
};

// Channels of a part from first_in on go to first_out, first_out + step_out, ...
struct ChannelRun {
  int64_t first_in, first_out, step_out, channels;

  // Whether the part, of so many channels, goes as a whole to where a block begins.
  bool keeps_blocks(int64_t part_channels) const {
    return step_out == 1 && channels == part_channels && first_out % kChannelBlock == 0;
  }
  CopyChannelsParams copy(int64_t pixels) const {
    CopyChannelsParams params{};
    params.pixels = pixels;
    params.channels = channels;
    params.first_in = first_in;
    params.first_out = first_out;
    params.step_out = step_out;
    return params;
  }
};

// The runs of the part that is channels [begin, begin + channels) of those joined.
inline std::vector<ChannelRun> runs_of_part(const ChannelShuffle& shuffle, int64_t begin,
                                            int64_t channels) {
  std::vector<ChannelRun> runs;
  const int64_t step = shuffle.groups;
  // How many of 0, step, 2 step, ... are less than `end`.
  const auto count_below = [step](int64_t end) { return end > 0 ? (end + step - 1) / step : 0; };
  for (int64_t group = 0; group < shuffle.groups; ++group) {  // c of it goes to c step + group
    const int64_t offset = group * shuffle.of_group;
    const int64_t first =
        std::max({begin - offset, int64_t{0}, count_below(shuffle.first - group)});
    const int64_t last = std::min({begin + channels - offset, shuffle.of_group,
                                   count_below(shuffle.first + shuffle.channels - group)});
    if (first < last)
      runs.push_back({first + offset - begin, first * step + group - shuffle.first, step,
                      last - first});
  }
  return runs;
}

}  // namespace fastdw
