#include "tests/cuda_on_host/executor/global_memory.h"

#include <cstdio>

#include "tests/cuda_on_host/executor/shared_memory.h"

namespace fastdw::host {

namespace {

[[noreturn]] void fail_global(const void* pointer, uint32_t bytes, const char* what, Place place) {
  char text[32];
  std::snprintf(text, sizeof(text), "%p", pointer);
  fail("an access to " + std::to_string(bytes) + " bytes of global memory at " + text + " " + what,
       place);
}

}  // namespace

void note_global(const void* pointer, uint32_t bytes, bool inside, Access access, Place place) {
  if (inside) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0)
      fail_global(pointer, bytes, "is not aligned", place);
    const size_t offset = static_cast<const unsigned char*>(pointer) - shared_memory.names;
    if (offset < kMostSharedBytes) fail_global(pointer, bytes, "names shared memory", place);
    if (watch.only_known_buffers && !is_in_known_buffer(pointer, bytes))
      fail_global(pointer, bytes, "lies outside every known buffer", place);
  }
  if (watch.counts) watch_global(__builtin_return_address(0), pointer, bytes, inside, access);
}

}  // namespace fastdw::host
