// Places in an arena for values that live from the step that writes them to the last that reads
// them; values that never live at the same time may share memory. First fit, in the order of the
// steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>

namespace fastdw {

constexpr int64_t round_up(int64_t size, int64_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

class ArenaPlacement {
 public:
  explicit ArenaPlacement(int64_t alignment) : alignment_(alignment) {}

  // What no step from this one on reads gives its place back.
  void begin_step(int step) {
    living_.remove_if([&](const Living& other) { return other.last_read < step; });
  }

  // The offset of a value of this step.
  int64_t place(int64_t size, int last_read) {
    const int64_t rounded = round_up(size, alignment_);
    auto above = living_.begin();
    int64_t begin = 0;
    for (; above != living_.end() && above->begin - begin < rounded; ++above) begin = above->end;
    living_.insert(above, {begin, begin + rounded, last_read});
    size_ = std::max(size_, begin + rounded);
    return begin;
  }

  int64_t size() const { return size_; }  // of the arena

 private:
  struct Living {
    int64_t begin, end;
    int last_read;
  };

  int64_t alignment_, size_ = 0;
  std::list<Living> living_;  // by address
};

}  // namespace fastdw
