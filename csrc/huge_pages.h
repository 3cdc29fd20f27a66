// Large weights in 2 MiB pages: 14 MB of MobileNet V2 are 3500 pages of 4 KiB, more than a TLB
// holds.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdw {

// Advice only: where the system knows no huge pages, or has none left, nothing changes.
inline void prefer_huge_pages(const void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPageBytes = uintptr_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1: at once, also where memory is in use
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kPageBytes * kPageBytes;
  if (begin >= end) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace fastdw
