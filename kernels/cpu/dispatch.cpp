#include "kernels/cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#define FASTDW_KERNEL(name, Params)           \
  namespace fastdw::avx512 {                  \
  extern const Kernel<Params> name##_kernel;  \
  }                                           \
  namespace fastdw::avx2 {                    \
  extern const Kernel<Params> name##_kernel;  \
  }                                           \
  namespace fastdw::portable {                \
  extern const Kernel<Params> name##_kernel;  \
  }
#include "kernels/cpu/kernel_list.inc"
#undef FASTDW_KERNEL

namespace fastdw {
namespace {

#if defined(__x86_64__)
constexpr bool kIsX86 = true;
#define FASTDW_CPU_HAS(feature) __builtin_cpu_supports(feature)
#else
constexpr bool kIsX86 = false;
#define FASTDW_CPU_HAS(feature) false
#endif

std::atomic<const KernelTable*> active{nullptr};

bool is_isa(const char* isa, const char* name) { return std::strcmp(isa, name) == 0; }

}  // namespace

bool cpu_isa_is_supported(const char* isa) {
  if (is_isa(isa, "portable")) return true;
  const bool avx2 = kIsX86 && FASTDW_CPU_HAS("avx2") && FASTDW_CPU_HAS("fma");
  if (is_isa(isa, "avx2")) return avx2;
  return is_isa(isa, "avx512") && avx2 && FASTDW_CPU_HAS("avx512f") &&
         FASTDW_CPU_HAS("avx512bw") && FASTDW_CPU_HAS("avx512dq") && FASTDW_CPU_HAS("avx512vl");
}

const KernelTable* kernel_table_of(const char* isa) {
  if (!cpu_isa_is_supported(isa)) return nullptr;
  // Filled on first use: the kernels' addresses live in other translation units.
#define FASTDW_KERNEL(name, Params) FASTDW_ISA::name##_kernel,
#if defined(__x86_64__)
#define FASTDW_ISA avx512
  static const KernelTable avx512_table{"avx512",
#include "kernels/cpu/kernel_list.inc"
  };
#undef FASTDW_ISA
#define FASTDW_ISA avx2
  static const KernelTable avx2_table{"avx2",
#include "kernels/cpu/kernel_list.inc"
  };
#undef FASTDW_ISA
  if (is_isa(isa, "avx512")) return &avx512_table;
  if (is_isa(isa, "avx2")) return &avx2_table;
#endif
#define FASTDW_ISA portable
  static const KernelTable portable_table{"portable",
#include "kernels/cpu/kernel_list.inc"
  };
#undef FASTDW_ISA
#undef FASTDW_KERNEL
  return &portable_table;
}

const KernelTable* active_kernel_table(const char** error) {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table != nullptr) return table;
  const char* forced = std::getenv("FASTDW_CPU_ISA");
  if (forced != nullptr && *forced != '\0') {
    table = kernel_table_of(forced);
    if (table == nullptr) {
      if (error != nullptr)
        *error = "FASTDW_CPU_ISA: expected avx512, avx2 or portable, and one that this CPU has";
      return nullptr;
    }
  } else {
    for (const char* isa : kCpuIsaNames)
      if (table == nullptr) table = kernel_table_of(isa);
  }
  active.store(table, std::memory_order_release);
  return table;
}

const char* active_cpu_isa() {
  const KernelTable* table = active_kernel_table(nullptr);
  return table != nullptr ? table->isa : "none";
}

bool set_cpu_isa(const char* isa) {
  const KernelTable* table = kernel_table_of(isa);
  if (table != nullptr) active.store(table, std::memory_order_release);
  return table != nullptr;
}

}  // namespace fastdw
