// What a core can do at most, to measure kernels against: multiply-adds in registers alone, as
// kPeakChains sums that do not wait for one another (4 cycles of latency x 2 ports need 8), and
// reading memory of a size that one level of the caches holds.
#pragma once

#include "kernels/cpu/notes.h"
#include "kernels/cpu/simd/vec.h"

namespace fastdw {
namespace {

static_assert(kPeakChains >= 8 && kPeakChains + 2 <= 16, "enough chains, in 16 registers");

// Each sum goes to 2 and stays there: 0.5 * 2 + 1. Factor, summand and starts come from memory, so
// that nothing can be computed by the compiler.
void run_fma_chains(const FmaChainsParams& params, int64_t begin, int64_t end, float*) {
  for (int64_t lane = 0; lane < kChannelBlock; lane += Vec::lanes) {
    const Vec factor = Vec::load(params.x + lane);
    const Vec summand = Vec::load(params.x + kChannelBlock + lane);
    Vec sum[kPeakChains];
    FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain)
      sum[chain] = Vec::load(params.x + (2 + chain) * kChannelBlock + lane);
    _Pragma("GCC unroll 4") for (int64_t unit = begin; unit < end; ++unit)
      FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain)
        sum[chain] = fma(sum[chain], factor, summand);
    FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain)
      sum[chain].store(params.y + chain * kChannelBlock + lane);
  }
}

// The sums go on from pass to pass, so that no pass can be left out.
void run_read_passes(const ReadPassesParams& params, int64_t begin, int64_t end, float*) {
  Vec sum[kPeakChains];
  FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain) sum[chain] = Vec::fill(0.0f);
  for (int64_t unit = begin; unit < end; ++unit)
    for (int64_t at = 0; at < params.floats; at += kPeakChains * Vec::lanes)
      FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain)
        sum[chain] = sum[chain] + Vec::load(params.x + at + chain * Vec::lanes);
  FASTDW_UNROLL for (int64_t chain = 0; chain < kPeakChains; ++chain)
    sum[chain].store(params.y + chain * Vec::lanes);
}

int64_t fma_chains_scratch(const FmaChainsParams&) { return 0; }
int64_t read_passes_scratch(const ReadPassesParams&) { return 0; }
void describe_fma_chains(const FmaChainsParams&, int64_t, int64_t, const Notes&) {}
void describe_read_passes(const ReadPassesParams&, int64_t, int64_t, const Notes&) {}

}  // namespace
}  // namespace fastdw
