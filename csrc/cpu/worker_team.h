// Many small parallel rounds inside one parallel region. A round is cut into one item per virtual
// worker and ends when all its items are done; only then may the next begin.
//
// torch's parallel_for does not promise how many callbacks come, nor that they run at the same
// time. So a callback takes the virtual workers of its range, and also does the items of workers
// that no callback has taken yet: one callback alone completes everything, and none waits for one
// that may never come. Which thread does an item does not change the item, hence not the result.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "csrc/reusable_buffer.h"

namespace fastdw {

class WorkerTeam {
 public:
  explicit WorkerTeam(int64_t workers) : size_(workers), workers_(new Worker[workers]) {}

  // Calls do_item(round, worker) for every round and worker. enter() runs once in each callback,
  // before it takes work, and may throw; what it returns is handed to do_item, which may not.
  template <class Enter, class DoItem>
  void run(int64_t rounds, const Enter& enter, const DoItem& do_item) {
    torch::stable::parallel_for(0, size_, 1, [&](int64_t begin, int64_t end) {
      auto resources = enter();
      work(begin, end, rounds,
           [&](int64_t round, int64_t worker) { do_item(round, worker, resources); });
    });
  }

 private:
  struct alignas(kCacheLineBytes) Worker {
    std::atomic<bool> taken{false};
    std::atomic<int64_t> next_round{0};  // the round of the item to be claimed next
  };

  template <class DoItem>
  void work(int64_t begin, int64_t end, int64_t rounds, const DoItem& do_item) {
    for (int64_t worker = begin; worker < end; ++worker)
      workers_[worker].taken.store(true, std::memory_order_relaxed);
    for (int64_t round = 0; round < rounds; ++round) {
      for (int64_t worker = begin; worker < end; ++worker) claim(worker, round, do_item);
      for (int64_t worker = 0; worker < size_; ++worker)
        if (!workers_[worker].taken.load(std::memory_order_relaxed)) claim(worker, round, do_item);
      await((round + 1) * size_, [&] {
        for (int64_t worker = 0; worker < size_; ++worker) claim(worker, round, do_item);
      });
    }
  }

  template <class DoItem>
  void claim(int64_t worker, int64_t round, const DoItem& do_item) {
    std::atomic<int64_t>& next = workers_[worker].next_round;
    int64_t expected = round;
    if (next.load(std::memory_order_relaxed) != round ||
        !next.compare_exchange_strong(expected, round + 1, std::memory_order_relaxed))
      return;
    do_item(round, worker);
    done_.fetch_add(1, std::memory_order_release);
  }

  // Spins a few microseconds, helps with what nobody has begun (its thread may have lost its core),
  // yields, and at last sleeps.
  template <class Help>
  void await(int64_t items, const Help& help) const {
    constexpr int kSpins = 100, kYields = 500;
    for (int attempt = 0; done_.load(std::memory_order_acquire) < items; ++attempt) {
      if (attempt < kSpins) {
        pause();
      } else if (attempt == kSpins) {
        help();
      } else if (attempt < kSpins + kYields) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int64_t size_;
  const std::unique_ptr<Worker[]> workers_;
  alignas(kCacheLineBytes) std::atomic<int64_t> done_{0};
};

}  // namespace fastdw
