// What is wrong with a kernel is thrown in the thread that does it, and returned by the launch.
#pragma once

#include <stdexcept>
#include <string>

namespace fastdw::host {

struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the source, as a default argument: the place of the call.
struct Place {
  const char* file;
  int line;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

std::string to_text(Place place);

// Names the block and the thread as well.
[[noreturn]] void fail(const std::string& what);
[[noreturn]] void fail(const std::string& what, Place place);

}  // namespace fastdw::host
