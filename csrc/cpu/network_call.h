// One call of a planned network: finds the weights, takes memory, runs the steps on the workers.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cpu/network_schedule.h"
#include "csrc/cpu/round_clock.h"
#include "csrc/packing.h"
#include "csrc/tensor_checks.h"

namespace fastdw {

// How long each step of a call took. Where a worker runs whole images, its steps share the time of
// that round as they share the workers' time.
class NetworkClock {
 public:
  void start(int64_t workers, int64_t rounds, int64_t steps) {
    worker_seconds_.assign(workers, std::vector<double>(steps, 0.0));
    rounds_.start(rounds, workers);
  }
  void image_step_done(int64_t worker, int64_t step, double seconds) {
    worker_seconds_[worker][step] += seconds;
  }
  void round_done(int64_t round, int64_t worker) { rounds_.done(round, worker); }

  // Writes the seconds of the image steps, then those of the batch steps.
  void read(const NetworkSchedule& schedule, const NetworkPlan& plan, double* seconds) const;

 private:
  std::vector<std::vector<double>> worker_seconds_;
  RoundClock rounds_;
};

class NetworkCall {
 public:
  NetworkCall(const NetworkPlan& plan, const Tensor& x, const Tensor& packed);

  // The outputs; with a clock also the time of every step.
  std::vector<Tensor> run(NetworkClock* clock = nullptr);
  const NetworkSchedule& schedule() const { return schedule_; }

 private:
  // Consecutive images that go through the steps together, with an arena for them.
  struct ImageGroup {
    int64_t first, count;
    float* arena;
  };

  struct StepWeights {
    BlobWeights own, stem;
  };

  std::vector<StepWeights> find_weights(const std::vector<PlanStep>& steps) const;
  BlobWeights weights_at(const PlanBlob& blob) const;
  Tensor empty_output(const PlanValue& value) const;
  float* address(int index, const ImageGroup& group) const;
  void run_part(const PlanStep& step, const StepWeights& weights, const ImageGroup& group,
                int64_t part, int64_t parts, float* scratch) const;
  void sum_part(const PlanStep& step, const ImageGroup& group, int64_t part, int64_t parts) const;
  void run_whole_images(int64_t worker, float* scratch) const;
  void run_image_round(const PlanRound& round, const ImageGroup& group, int64_t part,
                       int64_t parts, float* scratch) const;
  void run_batch_step(int64_t step, int64_t part, int64_t parts, float* scratch) const;

  const NetworkPlan& plan_;
  const KernelTable& table_;
  const Tensor &x_, &packed_;
  const bool is_channels_last_;
  const NetworkSchedule schedule_;
  std::vector<StepWeights> image_weights_, batch_weights_;
  std::vector<Tensor> outputs_;
  NetworkClock* clock_ = nullptr;
  float *arena_ = nullptr, *batch_values_ = nullptr;
};

}  // namespace fastdw
