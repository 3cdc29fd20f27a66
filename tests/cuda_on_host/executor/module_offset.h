// Addresses of code as addr2line wants them: counted from where the library or program is loaded.
#pragma once

#include <dlfcn.h>

#include <cstdint>

namespace fastdw::host {

inline int64_t module_offset(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0) return 0;
  return static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase);
}

}  // namespace fastdw::host
