// Where the values of a plan lie in its arena: each from its first writer to its last reader; the
// parts of a concatenation in the memory of the whole.
#pragma once

#include <algorithm>
#include <vector>

#include "csrc/arena_placement.h"
#include "csrc/cpu/network_plan.h"
#include "csrc/reusable_buffer.h"

namespace fastdw {

constexpr int64_t kArenaAlignment = kCacheLineBytes / sizeof(float);

// The value in whose memory this one lies: itself, if it is no part of another.
inline int whole_of(const NetworkPlan& plan, int index) {
  while (plan.values[index].whole != kNoValue) index = plan.values[index].whole;
  return index;
}

inline void place_in_arena(NetworkPlan& plan) {
  const int steps = static_cast<int>(plan.image_steps.size());
  std::vector<int> last_use(plan.values.size(), kNoValue);
  for (int step = 0; step < steps; ++step) {
    const PlanStep& user = plan.image_steps[step];
    for (const int index : {user.input, user.residual, user.output, user.partial_sums, user.row_sums})
      if (index != kNoValue) last_use[whole_of(plan, index)] = step;
  }
  std::vector<bool> is_placed(plan.values.size(), false);
  ArenaPlacement arena(kArenaAlignment);
  for (int step = 0; step < steps; ++step) {
    arena.begin_step(step);
    const PlanStep& writer = plan.image_steps[step];
    for (const int written : {writer.output, writer.partial_sums, writer.row_sums}) {
      if (written == kNoValue) continue;
      const int index = whole_of(plan, written);
      PlanValue& value = plan.values[index];
      if (value.place != PlanValue::Place::arena || is_placed[index]) continue;
      is_placed[index] = true;
      value.offset = arena.place(value.layout.image, last_use[index]);
    }
  }
  plan.arena_floats = arena.size();
}

}  // namespace fastdw
