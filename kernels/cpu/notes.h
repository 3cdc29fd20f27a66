// Where a kernel says how it would run a call: the values it chose, each by a name. The names are
// string literals; those of memory end in "_floats".
#pragma once

#include <cstdint>

namespace fastdw {

struct Notes {
  void* to;
  void (*add)(void* to, const char* name, int64_t value);
};

}  // namespace fastdw
