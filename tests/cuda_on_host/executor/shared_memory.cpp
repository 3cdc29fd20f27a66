#include "tests/cuda_on_host/executor/shared_memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "tests/cuda_on_host/executor/counters.h"

namespace fastdw::host {

namespace {

constexpr size_t kReserved = 256 * 1024;
constexpr size_t kCopyBytes = 16;

void* reserve(int protection) {
  void* memory =
      mmap(nullptr, kReserved, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void forget_stamps() {
  SharedMemory& memory = shared_memory;
  std::memset(memory.writers, 0, sizeof(memory.writers));
  std::memset(memory.readers, 0, sizeof(memory.readers));
  memory.segments = 0;
}

// Whether an access with this record came before the one that makes this stamp.
bool is_ordered(uint32_t record, uint32_t stamp) {
  if (record < shared_memory.first_of_epoch) return true;
  if ((record ^ stamp) & kWarpBits) return false;
  if ((record ^ stamp) >> kSegmentShift) return true;
  return record == stamp && !(record & kSeveral);
}

std::string describe(uint32_t record) {
  return "thread " + std::to_string(record & (kMostThreads - 1));
}

[[noreturn]] void fail_order(size_t unit, uint32_t record, const char* what, Place place) {
  fail("shared memory at byte " + std::to_string(unit * kSharedUnit) + " is " + what + " " +
           describe(record) + " and no barrier lies between",
       place);
}

[[noreturn]] void fail_under_way(size_t unit, const char* what, Place place) {
  fail("shared memory at byte " + std::to_string(unit * kSharedUnit) + " is " + what +
           " while an asynchronous copy to it is under way",
       place);
}

[[noreturn]] void fail_shared(const void* name, size_t bytes, const char* what, Place place) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(name) - shared_memory.names;
  fail("an access to " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset) + " " +
           what + " " + std::to_string(shared_memory.size) + " bytes of shared memory",
       place);
}

void judge_read(size_t unit, uint32_t stamp, Place place) {
  const uint32_t writer = shared_memory.writers[unit];
  if (writer & kUnderWay) fail_under_way(unit, "read", place);
  if (writer < shared_memory.first_of_block)
    fail("shared memory at byte " + std::to_string(unit * kSharedUnit) +
             " is read before anything was written to it",
         place);
  if (!is_ordered(writer, stamp)) fail_order(unit, writer, "read after it was written by", place);
}

void judge_write(size_t unit, uint32_t stamp, Place place) {
  const uint32_t writer = shared_memory.writers[unit];
  if (writer & kUnderWay) fail_under_way(unit, "written", place);
  if (!is_ordered(writer, stamp))
    fail_order(unit, writer, "written after it was written by", place);
  for (const auto& readers : shared_memory.readers) {
    if (!is_ordered(readers[unit], stamp))
      fail_order(unit, readers[unit], "written after it was read by", place);
  }
}

uint32_t own_stamp() { return current->warp->segment << kSegmentShift | current->number; }

template <size_t kBytes>
inline void note_read(size_t offset, uint32_t stamp, Place place) {
  SharedMemory& memory = shared_memory;
  if (!memory.checks_order) return;
  const size_t first = offset / kSharedUnit, end = first + kBytes / kSharedUnit;
  const uint32_t oldest = memory.first_of_block, newest = memory.first_of_epoch;
  uint32_t suspicious = 0;
  for (size_t i = first; i < end; ++i) suspicious |= memory.writers[i] - oldest >= newest - oldest;
  if (suspicious)
    for (size_t i = first; i < end; ++i) judge_read(i, stamp, place);
  for (size_t i = first; i < end; ++i) {
    const uint32_t latest = memory.readers[0][i];
    const bool same_warp = ((latest ^ stamp) & kWarpBits) == 0;
    const bool same_segment = (latest ^ stamp) >> kSegmentShift == 0;
    memory.readers[1][i] = same_warp ? memory.readers[1][i] : latest;
    memory.readers[0][i] = stamp | (same_warp && same_segment && latest != stamp ? kSeveral : 0);
  }
}

// new_stamp: what the place will carry, the own stamp or kUnderWay.
template <size_t kBytes>
inline void note_write(size_t offset, uint32_t stamp, uint32_t new_stamp, Place place) {
  SharedMemory& memory = shared_memory;
  if (!memory.checks_order) return;
  const size_t first = offset / kSharedUnit, end = first + kBytes / kSharedUnit;
  const uint32_t newest = memory.first_of_epoch;
  uint32_t suspicious = 0;
  for (size_t i = first; i < end; ++i)
    suspicious |= (memory.writers[i] >= newest) | (memory.readers[0][i] >= newest) |
                  (memory.readers[1][i] >= newest);
  if (suspicious)
    for (size_t i = first; i < end; ++i) judge_write(i, stamp, place);
  for (size_t i = first; i < end; ++i) memory.writers[i] = new_stamp;
}

}  // namespace

uint32_t next_segment() {
  if (++shared_memory.segments == kMostSegments)
    fail("a block has too many barriers for the checks of shared memory");
  return shared_memory.segments;
}

void begin_epoch() { shared_memory.first_of_epoch = (shared_memory.segments + 1) << kSegmentShift; }

void begin_block(size_t shared_bytes) {
  SharedMemory& memory = shared_memory;
  if (memory.names == nullptr) {
    memory.names = static_cast<unsigned char*>(reserve(PROT_NONE));
    memory.bytes = static_cast<unsigned char*>(reserve(PROT_READ | PROT_WRITE));
  }
  if (memory.is_dirty || memory.segments > kMostSegments / 2) forget_stamps();
  memory.is_dirty = true;
  memory.size = shared_bytes;
  std::memset(memory.bytes, 0xff, shared_bytes);  // NaN in every dtype
  begin_epoch();
  memory.first_of_block = memory.first_of_epoch;
}

void end_block() { shared_memory.is_dirty = false; }

size_t shared_offset(const void* name, size_t bytes, Place place) {
  const size_t offset = static_cast<const unsigned char*>(name) - shared_memory.names;
  if (offset > shared_memory.size || shared_memory.size - offset < bytes)
    fail_shared(name, bytes, "lies outside the block's", place);
  if (offset % bytes != 0) fail_shared(name, bytes, "is not aligned in", place);
  return offset;
}

template <size_t kBytes>
const unsigned char* read_shared(const void* name, Place place) {
  const size_t offset = shared_offset(name, kBytes, place);
  note_read<kBytes>(offset, own_stamp(), place);
  if (watch.counts) watch_shared(__builtin_return_address(0), offset, kBytes, true, Access::load);
  return shared_memory.bytes + offset;
}

template <size_t kBytes>
unsigned char* write_shared(void* name, bool inside, Place place) {
  size_t offset = 0;
  if (inside) {
    offset = shared_offset(name, kBytes, place);
    note_write<kBytes>(offset, own_stamp(), own_stamp(), place);
  }
  if (watch.counts)
    watch_shared(__builtin_return_address(0), offset, kBytes, inside, Access::store);
  return inside ? shared_memory.bytes + offset : nullptr;
}

template const unsigned char* read_shared<2>(const void*, Place);
template const unsigned char* read_shared<4>(const void*, Place);
template const unsigned char* read_shared<8>(const void*, Place);
template const unsigned char* read_shared<16>(const void*, Place);
template unsigned char* write_shared<2>(void*, bool, Place);
template unsigned char* write_shared<4>(void*, bool, Place);
template unsigned char* write_shared<8>(void*, bool, Place);
template unsigned char* write_shared<16>(void*, bool, Place);

// The lane's row goes to several lanes: it must have come before for all of them.
const unsigned char* read_matrix_row(const Thread& lane, const void* name, Place place) {
  const size_t offset = shared_offset(name, kRowBytes, place);
  note_read<kRowBytes>(offset, lane.warp->segment << kSegmentShift | kSeveral | lane.number, place);
  return shared_memory.bytes + offset;
}

void start_copy(void* name, const void* global, Place place) {
  const size_t offset = shared_offset(name, kCopyBytes, place);
  note_write<kCopyBytes>(offset, own_stamp(), kUnderWay | current->number, place);
  current->copies.add({offset, global});
  if (watch.counts)
    watch_shared(__builtin_return_address(0), offset, kCopyBytes, true, Access::copy);
}

void wait_for_copies(size_t pending) {
  const uint32_t stamp = own_stamp();
  current->copies.wait(pending, [&](const AsyncCopy& copy) {
    unsigned char* to = shared_memory.bytes + copy.shared_offset;
    if (copy.global != nullptr) {
      std::memcpy(to, copy.global, kCopyBytes);
    } else {
      std::memset(to, 0, kCopyBytes);
    }
    const size_t first = copy.shared_offset / kSharedUnit;
    for (size_t i = 0; i < kCopyBytes / kSharedUnit; ++i) shared_memory.writers[first + i] = stamp;
  });
}

}  // namespace fastdw::host
