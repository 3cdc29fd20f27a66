// Stacks to switch between: one for each thread of a block. In assembler on x86-64 (10 ns), by
// ucontext elsewhere. The sanitizers are told of every switch.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(FASTDW_HOST_UCONTEXT)
#define FASTDW_HOST_ASSEMBLER 1
#else
#include <ucontext.h>
#endif

namespace fastdw::host {

class Fiber {
 public:
  // The next switch to this fiber calls entry, which must never return.
  void prepare(char* stack, size_t bytes, void (*entry)());

  // The fiber that stands for the caller's own stack needs no preparing; its bounds are for ASan.
  void use_own_stack();

  static void change(Fiber& from, Fiber& to);

  // The first thing that a fiber's entry does.
  static void arrive_first_time();

 private:
#ifdef FASTDW_HOST_ASSEMBLER
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  char* stack_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
};

// Equal stacks, each above a page that may not be touched, kept for the life of the process.
class Stacks {
 public:
  static constexpr int kMost = 1024;
  char* stack(int index);
  size_t bytes(int index) const;

 private:
  char* memory_ = nullptr;
};

}  // namespace fastdw::host
