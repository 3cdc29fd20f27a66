// A thread's cp.async copies that it has not waited for. A copy takes place when it is waited for,
// the latest time that hardware may choose.
#pragma once

#include <cstddef>
#include <vector>

namespace fastdw::host {

struct AsyncCopy {
  size_t shared_offset;
  const void* global;  // null: zeros
};

class AsyncCopies {
 public:
  void add(const AsyncCopy& copy) { copies_.push_back(copy); }
  void commit() { group_ends_.push_back(copies_.size()); }
  bool is_empty() const { return copies_.size() == done_copies_; }

  // Calls apply(copy) for the copies of all but the latest pending groups.
  template <class Apply>
  void wait(size_t pending, const Apply& apply) {
    while (group_ends_.size() - done_groups_ > pending) {
      const size_t end = group_ends_[done_groups_++];
      while (done_copies_ < end) apply(copies_[done_copies_++]);
    }
    if (is_empty() && done_groups_ == group_ends_.size()) clear();
  }

  void clear() {
    copies_.clear();
    group_ends_.clear();
    done_copies_ = done_groups_ = 0;
  }

 private:
  std::vector<AsyncCopy> copies_;
  std::vector<size_t> group_ends_;  // how many copies came before the end of each group
  size_t done_copies_ = 0, done_groups_ = 0;
};

}  // namespace fastdw::host
