// An op that calls fastdw::planned_network from inside a parallel region of torch, for the tests.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <string>
#include <vector>

using torch::stable::Tensor;

static std::vector<Tensor> call_in_region(const Tensor& x, const Tensor& packed,
                                          const std::string& program, int64_t calls) {
  std::vector<Tensor> results(calls);
  torch::stable::parallel_for(0, calls, 1, [&](int64_t begin, int64_t end) {
    for (int64_t call = begin; call < end; ++call) {
      std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                        torch::stable::detail::from(packed),
                                        torch::stable::detail::from(program)};
      STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("fastdw::planned_network", "",
                                                          stack.data(), TORCH_ABI_VERSION));
      results[call] = torch::stable::detail::to<std::vector<Tensor>>(stack[0])[0];
    }
  });
  return results;
}

STABLE_TORCH_LIBRARY(fastdw_nested_region, m) {
  m.def("call(Tensor x, Tensor packed, str program, int calls) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastdw_nested_region, CPU, m) {
  m.impl("call", TORCH_BOX(&call_in_region));
}
