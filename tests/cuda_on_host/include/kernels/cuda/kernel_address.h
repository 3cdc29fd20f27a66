// Stands in for the header of this name: remembers how the kernel at an address is called.
#pragma once

#include <cstddef>

namespace fastdw::host {

void know_kernel(const void* kernel, void (*body)(const void* kernel, const void* params),
                 size_t params_bytes);

}  // namespace fastdw::host

namespace fastdw::cuda {

template <class Params>
const void* kernel_address(void (*kernel)(Params)) {
  const void* address = reinterpret_cast<const void*>(kernel);
  const auto body = [](const void* called, const void* params) {
    reinterpret_cast<void (*)(Params)>(const_cast<void*>(called))(
        *static_cast<const Params*>(params));
  };
  host::know_kernel(address, body, sizeof(Params));
  return address;
}

}  // namespace fastdw::cuda
