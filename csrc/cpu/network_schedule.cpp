#include "csrc/cpu/network_schedule.h"

#include <algorithm>

#include "csrc/parallel_units.h"

namespace fastdw {

NetworkSchedule schedule_of(const NetworkPlan& plan, const KernelTable& table, int64_t batch,
                            bool channels_last, int64_t threads) {
  NetworkSchedule schedule{};
  schedule.batch = batch;
  const double worth = plan.multiply_adds * batch / kMultiplyAddsPerThread;
  schedule.workers = static_cast<int64_t>(std::clamp(worth, 1.0, static_cast<double>(threads)));
  schedule.whole_images = batch / schedule.workers;
  schedule.rest_images = batch % schedule.workers;
  if (schedule.empty()) return schedule;
  const int64_t arenas = schedule.whole_images > 0 ? schedule.workers : schedule.rest_images;
  schedule.arena_floats = checked_product("x", {arenas, plan.arena_floats});
  schedule.batch_floats = checked_product("x", {batch, plan.batch_floats});

  const auto measure = [&](const auto& kernel, const auto& params) {
    schedule.scratch_floats = std::max(schedule.scratch_floats, kernel.scratch_floats(params));
  };
  const auto measure_all = [&](const std::vector<PlanStep>& steps, int64_t images) {
    if (images == 0) return;
    for (const PlanStep& step : steps) with_kernel(table, step, images, channels_last, measure);
  };
  measure_all(plan.image_steps, schedule.whole_images > 0);
  measure_all(plan.image_steps, schedule.rest_images);
  measure_all(plan.batch_steps, batch);
  return schedule;
}

}  // namespace fastdw
