// A warp's requests, put together from what its lanes do one after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "tests/cuda_on_host/executor/block.h"

namespace fastdw::host {

struct Request {
  uint64_t places[kWarpLanes];  // addresses, or offsets in shared memory
  uint32_t inside = 0, visited = 0;
  uint32_t bytes = 0;  // of one lane
};

// How often all lanes of each warp have met. What they do until they meet again is numbered anew:
// a lane that sits out the end of a loop is in step again after that.
inline uint64_t meetings_of_warp[kMostWarps];

class RequestsOfWarp {
 public:
  // The lane's next visit. Calls done(request) for requests that no lane can come to any more.
  // Returns how many of them not all lanes have visited.
  template <class Done>
  int64_t visit(int lane, uint32_t all_lanes, uint64_t meeting, uint64_t place, uint32_t bytes,
                bool inside, const Done& done) {
    int64_t incomplete = 0;
    if (meeting != meeting_) incomplete = finish(done);
    meeting_ = meeting;
    const uint32_t index = visits_[lane]++;
    if (index >= open_.size()) open_.resize(index + 1);
    Request& request = open_[index];
    const uint32_t own = 1u << lane;
    request.places[lane] = place;
    request.bytes = bytes;
    request.visited |= own;
    if (inside) request.inside |= own;
    for (; done_ < open_.size() && open_[done_].visited == all_lanes; ++done_) done(open_[done_]);
    return incomplete;
  }

  template <class Done>
  int64_t finish(const Done& done) {
    const int64_t incomplete = static_cast<int64_t>(open_.size() - done_);
    for (; done_ < open_.size(); ++done_) done(open_[done_]);
    open_.clear();
    done_ = 0;
    std::fill(std::begin(visits_), std::end(visits_), 0);
    return incomplete;
  }

 private:
  uint64_t meeting_ = 0;
  uint32_t visits_[kWarpLanes] = {};
  size_t done_ = 0;
  std::vector<Request> open_;
};

struct Turns {
  int64_t wavefronts, least;  // needed, and without conflicts
};
Turns turns_of_shared(const Request& request);

// Distinct 32-byte sectors.
int sectors_of_global(const Request& request);

}  // namespace fastdw::host
