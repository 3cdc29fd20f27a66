// FASTDW_BLOCKING: the blocking of single steps, where the user wants another one than
// kernels/cpu/blocking.h would choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastdw {

struct ChosenBlocking {
  std::string text;  // for messages: "13:7x4"
  int64_t step;      // as `fastdw bench --explain` counts them
  int64_t band_rows, chunk_blocks;
};

// STEP:ROWSxBLOCKS[,STEP:ROWSxBLOCKS]..., read from the environment; none if it is not set.
std::vector<ChosenBlocking> chosen_blockings();

}  // namespace fastdw
