#include "tests/cuda_on_host/executor/warp.h"

#include "tests/cuda_on_host/executor/requests.h"
#include "tests/cuda_on_host/executor/shared_memory.h"

namespace fastdw::host {

namespace {

void sync_warp_action(void* const (&)[kWarpLanes], uint32_t, Place) {
  current->warp->segment = next_segment();
}

struct BallotArgument {
  bool predicate;
  uint32_t result;
};

void ballot_action(void* const (&arguments)[kWarpLanes], uint32_t present, Place) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (present >> lane & 1 && static_cast<BallotArgument*>(arguments[lane])->predicate)
      votes |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpLanes; ++lane)
    if (present >> lane & 1) static_cast<BallotArgument*>(arguments[lane])->result = votes;
}

Meeting& find_meeting(Warp& warp, Meeting::Action action, uint32_t mask, Place place) {
  Meeting* empty = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived == 0) {
      if (empty == nullptr) empty = &meeting;
    } else if (meeting.action == action && meeting.mask == mask) {
      return meeting;
    }
  }
  if (empty == nullptr) fail("the lanes of a warp wait at too many different places", place);
  empty->action = action;
  empty->mask = mask;
  empty->place = place;
  return *empty;
}

}  // namespace

void Warp::complete(Meeting& meeting) {
  const uint32_t present = meeting.arrived;
  meeting.arrived = 0;
  ready |= present;
  if (present == alive) ++meetings_of_warp[number];
  meeting.action(meeting.arguments, present, meeting.place);
}

void meet(Meeting::Action action, uint32_t mask, void* argument, Place place) {
  Warp& warp = *current->warp;
  const uint32_t own = 1u << current->lane;
  if (!(mask & own)) fail("a lane is missing from the mask that it passes", place);
  Meeting& meeting = find_meeting(warp, action, mask, place);
  meeting.arguments[current->lane] = argument;
  meeting.arrived |= own;
  if ((mask & warp.alive & ~meeting.arrived) == 0) {
    warp.complete(meeting);
    return;
  }
  warp.ready &= ~own;
  current->waits_at = place;
  wait_for_others();
}

void meet_whole_warp(Meeting::Action action, void* argument, Place place) {
  if (current->warp->alive != ~0u)
    fail("an instruction of the whole warp is met by " +
             std::to_string(__builtin_popcount(current->warp->alive)) + " lanes only",
         place);
  meet(action, ~0u, argument, place);
}

void sync_block(Place place) {
  Warp& warp = *current->warp;
  const uint32_t own = 1u << current->lane;
  warp.ready &= ~own;
  warp.at_barrier |= own;
  current->waits_at = place;
  wait_for_others();
}

void sync_warp(uint32_t mask, Place place) { meet(sync_warp_action, mask, nullptr, place); }

int shuffle_source(Shuffle kind, int lane, int operand, int width) {
  const int first = lane / width * width;
  int source = lane;
  switch (kind) {
    case Shuffle::index: return first + (operand & (width - 1));
    case Shuffle::up: source = lane - operand; break;
    case Shuffle::down: source = lane + operand; break;
    case Shuffle::exclusive_or: source = lane ^ operand; break;
  }
  return source >= first && source < first + width ? source : lane;
}

uint32_t ballot(uint32_t mask, bool predicate, Place place) {
  BallotArgument argument{predicate, 0};
  meet(ballot_action, mask, &argument, place);
  return argument.result;
}

}  // namespace fastdw::host
