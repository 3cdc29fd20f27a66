#include "tests/cuda_on_host/executor/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef FASTDW_HOST_ASSEMBLER
extern "C" void fastdw_host_switch(void** save, void* to);
__asm__(
    ".text\n"
    ".hidden fastdw_host_switch\n"
    ".globl fastdw_host_switch\n"
    ".type fastdw_host_switch,@function\n"
    "fastdw_host_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  retq\n"
    ".size fastdw_host_switch, .-fastdw_host_switch\n");
#endif

namespace fastdw::host {

namespace {

constexpr size_t kPage = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackPages = 64;
#else
constexpr size_t kStackPages = 16;
#endif
// With the page that may not be touched, an odd number: equal places in the stacks fall into
// different sets of the caches.
constexpr size_t kStride = (kStackPages + 1) * kPage;

}  // namespace

void Fiber::prepare(char* stack, size_t bytes, void (*entry)()) {
  stack_ = stack;
  bytes_ = bytes;
  fake_stack_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, bytes);
#endif
#ifdef FASTDW_HOST_ASSEMBLER
  // At a function's entry the stack pointer is 8 less than a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + bytes / 16 * 16 - 64);
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;  // nobody to return to
  for (int saved = 1; saved <= 6; ++saved) top[-saved] = nullptr;
  stack_pointer_ = top - 6;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::use_own_stack() {
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* low;
  pthread_attr_getstack(&attributes, &low, &bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(low);
#endif
}

void Fiber::change(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.bytes_);
#endif
#ifdef FASTDW_HOST_ASSEMBLER
  fastdw_host_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::arrive_first_time() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

char* Stacks::stack(int index) {
  if (memory_ == nullptr) {
    void* memory = mmap(nullptr, kMost * kStride, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (int i = 0; i < kMost; ++i) mprotect(memory_ + i * kStride, kPage, PROT_NONE);
  }
  return memory_ + index * kStride + kPage;
}

size_t Stacks::bytes(int index) const { return kStackPages * kPage - index * 320 % kPage; }

}  // namespace fastdw::host
