// When each worker of a team was done with each round, and so how long the rounds took.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace fastdw {

inline double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

class RoundClock {
 public:
  void start(int64_t rounds, int64_t workers) {
    workers_ = workers;
    done_.assign(rounds * workers, 0.0);
    start_ = seconds_now();
  }

  // One clock read; the workers call it at the same time, each for itself.
  void done(int64_t round, int64_t worker) { done_[round * workers_ + worker] = seconds_now(); }

  // From the end of the round before to the moment when the last worker was done.
  double seconds(int64_t round) const {
    return end_of(round) - (round > 0 ? end_of(round - 1) : start_);
  }

 private:
  double end_of(int64_t round) const {
    const auto first = done_.begin() + round * workers_;
    return *std::max_element(first, first + workers_);
  }

  int64_t workers_ = 1;
  double start_ = 0.0;
  std::vector<double> done_;  // [rounds][workers]
};

}  // namespace fastdw
