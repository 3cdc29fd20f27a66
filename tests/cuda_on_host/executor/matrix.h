// ldmatrix and mma: the last lane to come computes for its warp.
#pragma once

#include <cstdint>

#include "tests/cuda_on_host/executor/error.h"

namespace fastdw::host {

enum class Factors { fp16, bf16, tf32 };

// Fragments as the PTX manual lays them out over the lanes.
__attribute__((noinline)) void load_matrices(uint32_t (&parts)[4], const void* row, Place place);
void multiply_matrices(Factors factors, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1, Place place);

}  // namespace fastdw::host
