#include "tests/cuda_on_host/executor/requests.h"

#include <algorithm>

namespace fastdw::host {

namespace {

constexpr int kBanks = 32;
constexpr uint64_t kWordBytes = 4, kSectorBytes = 32;

// One group of lanes, served together.
Turns turns_of_group(const Request& request, int first_lane, int lanes) {
  uint64_t words[kBanks * 4];
  int count = 0;
  for (int lane = first_lane; lane < first_lane + lanes; ++lane) {
    if (!(request.inside >> lane & 1)) continue;
    const uint64_t first = request.places[lane] / kWordBytes;
    const uint64_t end = (request.places[lane] + request.bytes + kWordBytes - 1) / kWordBytes;
    for (uint64_t word = first; word < end; ++word) words[count++] = word;
  }
  if (count == 0) return {0, 0};
  std::sort(words, words + count);
  count = static_cast<int>(std::unique(words, words + count) - words);
  int64_t turns[kBanks] = {};
  for (int i = 0; i < count; ++i) ++turns[words[i] % kBanks];
  return {*std::max_element(turns, turns + kBanks), (count + kBanks - 1) / kBanks};
}

}  // namespace

Turns turns_of_shared(const Request& request) {
  const int lanes = request.bytes <= 4 ? kWarpLanes : kWarpLanes * 4 / request.bytes;
  Turns sum{0, 0};
  for (int first = 0; first < kWarpLanes; first += lanes) {
    const Turns turns = turns_of_group(request, first, lanes);
    sum.wavefronts += turns.wavefronts;
    sum.least += turns.least;
  }
  return sum;
}

int sectors_of_global(const Request& request) {
  uint64_t sectors[kWarpLanes];
  int count = 0;
  for (int lane = 0; lane < kWarpLanes; ++lane)
    if (request.inside >> lane & 1) sectors[count++] = request.places[lane] / kSectorBytes;
  std::sort(sectors, sectors + count);
  return static_cast<int>(std::unique(sectors, sectors + count) - sectors);
}

}  // namespace fastdw::host
