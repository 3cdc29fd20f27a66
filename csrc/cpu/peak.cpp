// The limits of this machine, measured on the threads that the networks run on: multiply-adds in
// registers, and reading memory.
#include <algorithm>

#include "csrc/cpu/ops.h"
#include "csrc/cpu/round_clock.h"
#include "csrc/cpu/worker_team.h"
#include "csrc/parallel_units.h"

namespace fastdw {
namespace {

constexpr double kSliceSeconds = 1e-3;  // beside a barrier's microsecond
constexpr int64_t kMostSlices = 100000, kMostThreads = 1024;
constexpr int64_t kRowFloats = kPeakChains * kChannelBlock;

// do_units(worker, units) on all workers at once, slice by slice; the seconds of each slice.
template <class DoUnits>
std::vector<double> time_slices(int64_t workers, int64_t slices, int64_t units,
                                const DoUnits& do_units) {
  RoundClock clock;
  // The first round only brings the workers together.
  clock.start(slices + 1, workers);
  const auto enter = [] { return 0; };
  WorkerTeam(workers).run(slices + 1, enter, [&](int64_t round, int64_t worker, int) {
    do_units(worker, round == 0 ? 1 : units);
    clock.done(round, worker);
  });
  std::vector<double> seconds;
  for (int64_t slice = 1; slice <= slices; ++slice) seconds.push_back(clock.seconds(slice));
  return seconds;
}

// What each slice of about a millisecond achieved, all workers together, in 1e9 a second;
// `amount`: of one unit.
template <class DoUnits>
Tensor measure_rate(int64_t workers, double seconds, double amount, const DoUnits& do_units) {
  int64_t units = 1;
  double slice = 0.0;
  while ((slice = time_slices(workers, 1, units, do_units)[0]) < kSliceSeconds) units *= 2;
  const double wanted = std::clamp(seconds / slice, 3.0, static_cast<double>(kMostSlices));
  const std::vector<double> times =
      time_slices(workers, static_cast<int64_t>(wanted), units, do_units);
  const Tensor rates =
      torch::stable::empty({static_cast<int64_t>(times.size())}, ScalarType::Double);
  auto* rate = static_cast<double*>(rates.mutable_data_ptr());
  for (const double time : times) *rate++ = 1e-9 * amount * units * workers / time;
  return rates;
}

void check_measurement(int64_t threads, double seconds) {
  FASTDW_CHECK(threads >= 1 && threads <= kMostThreads, "threads: expected 1 to ", kMostThreads,
               ", got ", threads);
  FASTDW_CHECK(seconds >= 0 && seconds <= 60, "seconds: expected 0 to 60, got ", seconds);
}

}  // namespace

Tensor measure_peak(int64_t threads, double seconds) {
  check_measurement(threads, seconds);
  const auto& kernel = kernel_table().fma_chains;
  // Each worker's own: factor and summand, the first sums, the last sums.
  const int64_t start_floats = 2 * kChannelBlock + kRowFloats;
  const int64_t floats = start_floats + kRowFloats;
  const AlignedFloats memory = allocate_floats(threads * floats);
  for (int64_t worker = 0; worker < threads; ++worker) {
    float* x = memory.get() + worker * floats;
    std::fill(x, x + kChannelBlock, 0.5f);
    std::fill(x + kChannelBlock, x + 2 * kChannelBlock, 1.0f);
    for (int64_t i = 2 * kChannelBlock; i < start_floats; ++i) x[i] = 1.0f + 1e-3f * i;
  }
  return measure_rate(threads, seconds, 2.0 * kRowFloats, [&](int64_t worker, int64_t units) {
    float* x = memory.get() + worker * floats;
    kernel.run({x, x + start_floats, units}, 0, units, nullptr);
  });
}

Tensor measure_bandwidth(int64_t threads, int64_t bytes, double seconds) {
  check_measurement(threads, seconds);
  const int64_t row_bytes = kRowFloats * static_cast<int64_t>(sizeof(float));
  FASTDW_CHECK(bytes >= row_bytes, "bytes: expected at least ", row_bytes, ", got ", bytes);
  const auto& kernel = kernel_table().read_passes;
  const int64_t floats = bytes / row_bytes * kRowFloats, sums = kRowFloats;
  const AlignedFloats memory = allocate_floats(checked_product("bytes", {threads, floats + sums}));
  const auto x_of = [&](int64_t worker) { return memory.get() + worker * (floats + sums); };
  // The worker's own thread writes first: the pages then lie near its core.
  time_slices(threads, 0, 0, [&](int64_t worker, int64_t) {
    std::fill(x_of(worker), x_of(worker) + floats, 1.0f);
  });
  const double pass_bytes = static_cast<double>(floats) * sizeof(float);
  return measure_rate(threads, seconds, pass_bytes, [&](int64_t worker, int64_t units) {
    kernel.run({x_of(worker), x_of(worker) + floats, floats, units}, 0, units, nullptr);
  });
}

}  // namespace fastdw
