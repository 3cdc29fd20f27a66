#include "tests/cuda_on_host/executor/counters.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <vector>

#include "tests/cuda_on_host/executor/module_offset.h"
#include "tests/cuda_on_host/executor/requests.h"

namespace fastdw::host {

namespace {

constexpr uint64_t kSectorBytes = 32, kPageBytes = 4096;

class SectorSet {
 public:
  void add(uint64_t address) {
    const uint64_t page = address / kPageBytes, sector = address % kPageBytes / kSectorBytes;
    if (latest_ == nullptr || page != latest_page_) {
      latest_ = &pages_[page];
      latest_page_ = page;
    }
    (*latest_)[sector / 64] |= uint64_t{1} << sector % 64;
  }

  int64_t count() const {
    int64_t sum = 0;
    for (const auto& page : pages_)
      for (const uint64_t word : page.second) sum += __builtin_popcountll(word);
    return sum;
  }

 private:
  using Page = std::array<uint64_t, kPageBytes / kSectorBytes / 64>;
  std::unordered_map<uint64_t, Page> pages_;
  Page* latest_ = nullptr;
  uint64_t latest_page_ = 0;
};

struct Traffic {
  int64_t distinct_sectors = 0, requests = 0, request_sectors = 0, bytes = 0;
};

struct Buffer {
  std::string name;
  uint64_t begin, end;
  SectorSet touched[2];  // read, written
  Traffic traffic[2];
};

// A place of the machine code: its shared memory requests, or its open global ones.
struct Site {
  RequestsOfWarp warps[kMostWarps];
  int64_t requests = 0, wavefronts = 0, least = 0;
};

using SiteKey = std::pair<const void*, Access>;

struct CountedLaunch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  int64_t multiply_adds, incomplete;
  std::map<std::string, std::array<Traffic, 2>> buffers;
  std::map<SiteKey, std::array<int64_t, 3>> shared;  // requests, wavefronts, least
};

std::vector<Buffer> buffers;  // by address
Buffer others{"other", 0, 0, {}, {}};
Buffer* latest_buffer = nullptr;
std::map<SiteKey, Site> global_sites, shared_sites;
std::vector<CountedLaunch> launches;
int64_t incomplete_requests = 0;  // of this launch: some lanes never came

Buffer* find_buffer(uint64_t address) {
  if (latest_buffer != nullptr && address >= latest_buffer->begin && address < latest_buffer->end)
    return latest_buffer;
  const auto after =
      std::upper_bound(buffers.begin(), buffers.end(), address,
                       [](uint64_t value, const Buffer& buffer) { return value < buffer.begin; });
  if (after == buffers.begin() || address >= (after - 1)->end) return nullptr;
  return latest_buffer = &*(after - 1);
}

uint32_t lanes_at_start(const Warp& warp) {
  const int lanes = block.thread_count - warp.number * kWarpLanes;
  return lanes >= kWarpLanes ? ~0u : (1u << lanes) - 1;
}

void tally_global(const Request& request, bool writes) {
  if (request.inside == 0) return;
  const uint64_t first = request.places[__builtin_ctz(request.inside)];
  Buffer* buffer = find_buffer(first);
  Traffic& traffic = (buffer == nullptr ? others : *buffer).traffic[writes];
  ++traffic.requests;
  traffic.request_sectors += sectors_of_global(request);
  traffic.bytes += int64_t{request.bytes} * __builtin_popcount(request.inside);
}

void tally_shared(Site& site, const Request& request) {
  if (request.inside == 0) return;
  const Turns turns = turns_of_shared(request);
  ++site.requests;
  site.wavefronts += turns.wavefronts;
  site.least += turns.least;
}

void add_to(Traffic& sum, const Traffic& part) {
  sum.distinct_sectors += part.distinct_sectors;
  sum.requests += part.requests;
  sum.request_sectors += part.request_sectors;
  sum.bytes += part.bytes;
}

void move_traffic(CountedLaunch& launch, Buffer& buffer) {
  for (int writes = 0; writes < 2; ++writes) {
    buffer.traffic[writes].distinct_sectors = buffer.touched[writes].count();
    if (buffer.traffic[writes].requests != 0)
      add_to(launch.buffers[buffer.name][writes], buffer.traffic[writes]);
    buffer.traffic[writes] = {};
    buffer.touched[writes] = {};
  }
}

std::string pair_text(const std::string& name, int64_t value) {
  return "\"" + name + "\": " + std::to_string(value);
}

std::string to_json(const Traffic& traffic) {
  return "{" + pair_text("distinct_sectors", traffic.distinct_sectors) + ", " +
         pair_text("requests", traffic.requests) + ", " +
         pair_text("request_sectors", traffic.request_sectors) + ", " +
         pair_text("bytes", traffic.bytes) + "}";
}

std::string to_json(dim3 size) {
  return "[" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " +
         std::to_string(size.z) + "]";
}

std::string to_json(const CountedLaunch& launch) {
  static const char* const names[] = {"load", "store", "copy", "matrix"};
  std::string text = "{" + pair_text("kernel", module_offset(launch.kernel)) +
                     ", \"grid\": " + to_json(launch.grid) +
                     ", \"block\": " + to_json(launch.block) + ", " +
                     pair_text("shared_bytes", launch.shared_bytes) + ", " +
                     pair_text("multiply_adds", launch.multiply_adds) + ", " +
                     pair_text("incomplete_requests", launch.incomplete) + ", \"buffers\": {";
  const char* separator = "";
  for (const auto& [name, traffic] : launch.buffers) {
    text += separator + ("\"" + name + "\": {\"read\": ") + to_json(traffic[0]) +
            ", \"written\": " + to_json(traffic[1]) + "}";
    separator = ", ";
  }
  text += "}, \"shared\": [";
  separator = "";
  for (const auto& [key, counts] : launch.shared) {
    text += separator + ("{" + pair_text("site", module_offset(key.first))) + ", \"access\": \"" +
            names[static_cast<int>(key.second)] + "\", " + pair_text("requests", counts[0]) + ", " +
            pair_text("wavefronts", counts[1]) + ", " +
            pair_text("conflicts", counts[1] - counts[2]) + "}";
    separator = ", ";
  }
  return text + "]}";
}

}  // namespace

void watch_global(const void* code, const void* pointer, uint32_t bytes, bool inside,
                  Access access) {
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  const bool writes = access == Access::store;
  if (inside) {
    Buffer* buffer = find_buffer(address);
    (buffer == nullptr ? others : *buffer).touched[writes].add(address);
  }
  const Warp& warp = *current->warp;
  Site& site = global_sites[{code, access}];
  incomplete_requests += site.warps[warp.number].visit(
      current->lane, lanes_at_start(warp), meetings_of_warp[warp.number], address, bytes, inside,
      [&](const Request& request) { tally_global(request, writes); });
}

void watch_shared(const void* code, size_t offset, uint32_t bytes, bool inside, Access access) {
  const Warp& warp = *current->warp;
  Site& site = shared_sites[{code, access}];
  incomplete_requests += site.warps[warp.number].visit(
      current->lane, lanes_at_start(warp), meetings_of_warp[warp.number], offset, bytes, inside,
      [&](const Request& request) { tally_shared(site, request); });
}

void know_buffer(const std::string& name, const void* begin, size_t bytes) {
  const uint64_t address = reinterpret_cast<uint64_t>(begin);
  const auto after =
      std::upper_bound(buffers.begin(), buffers.end(), address,
                       [](uint64_t value, const Buffer& buffer) { return value < buffer.begin; });
  buffers.insert(after, Buffer{name, address, address + bytes, {}, {}});
  latest_buffer = nullptr;
}

void forget_buffers() {
  buffers.clear();
  latest_buffer = nullptr;
}

bool is_in_known_buffer(const void* pointer, uint32_t bytes) {
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  const Buffer* buffer = find_buffer(address);
  return buffer != nullptr && address + bytes <= buffer->end;
}

void forget_counts() { launches.clear(); }

void count_launch_begin() {
  watch.multiply_adds = 0;
  global_sites.clear();
  shared_sites.clear();
  incomplete_requests = 0;
}

void count_block_end() {
  for (auto& [key, site] : global_sites) {
    const bool writes = key.second == Access::store;
    for (int i = 0; i < block.warp_count; ++i)
      incomplete_requests +=
          site.warps[i].finish([&](const Request& request) { tally_global(request, writes); });
  }
  for (auto& item : shared_sites) {
    Site& site = item.second;
    for (int i = 0; i < block.warp_count; ++i)
      incomplete_requests +=
          site.warps[i].finish([&](const Request& request) { tally_shared(site, request); });
  }
}

void count_launch_end() {
  CountedLaunch launch{block.launch.kernel,
                       block.launch.grid,
                       block.launch.block,
                       block.launch.shared_bytes,
                       watch.multiply_adds,
                       incomplete_requests,
                       {},
                       {}};
  for (Buffer& buffer : buffers) move_traffic(launch, buffer);
  move_traffic(launch, others);
  for (const auto& [key, site] : shared_sites)
    launch.shared[key] = {site.requests, site.wavefronts, site.least};
  launches.push_back(std::move(launch));
}

std::string counts_as_json() {
  std::string text = "[";
  for (const CountedLaunch& launch : launches)
    text += (text.size() > 1 ? ",\n" : "") + to_json(launch);
  return text + "]";
}

}  // namespace fastdw::host
