// What threads do together: barriers, shuffles, votes.
#pragma once

#include "tests/cuda_on_host/executor/block.h"

namespace fastdw::host {

void sync_block(Place place);
void sync_warp(uint32_t mask, Place place);

// Joins the lanes of mask, which all come with the same action. Lanes that have exited may be
// missing; the action sees who is present.
void meet(Meeting::Action action, uint32_t mask, void* argument, Place place);

// The same where all 32 lanes must be there.
void meet_whole_warp(Meeting::Action action, void* argument, Place place);

enum class Shuffle { index, up, down, exclusive_or };

// The lane from which a lane reads, itself where the wanted one lies outside its part of the warp.
int shuffle_source(Shuffle kind, int lane, int operand, int width);

template <class T>
struct ShuffleArgument {
  T value;
  T result;
  int source;
};

template <class T>
void shuffle_action(void* const (&arguments)[kWarpLanes], uint32_t present, Place place) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(present >> lane & 1)) continue;
    auto* own = static_cast<ShuffleArgument<T>*>(arguments[lane]);
    if (!(present >> own->source & 1))
      fail("a shuffle reads from lane " + std::to_string(own->source) + ", which is absent", place);
    own->result = static_cast<ShuffleArgument<T>*>(arguments[own->source])->value;
  }
}

template <class T>
T shuffle(Shuffle kind, uint32_t mask, T value, int operand, int width, Place place) {
  ShuffleArgument<T> argument{value, value, shuffle_source(kind, current->lane, operand, width)};
  meet(shuffle_action<T>, mask, &argument, place);
  return argument.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Place place);

}  // namespace fastdw::host
