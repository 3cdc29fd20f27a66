// A whole network as one call, and the same call with the time of every step.
#include <atomic>
#include <cstring>

#include "csrc/cpu/network_call.h"
#include "csrc/cpu/ops.h"
#include "csrc/huge_pages.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {
namespace {

constexpr uint32_t kPlanMagic = 0x50574446;  // "FDWP"
constexpr int64_t kPlanHeaderBytes = 64;

void check_plan_header(const Tensor& packed, const NetworkPlan& plan) {
  struct {
    uint32_t magic, version, isa, steps;
  } header;
  FASTDW_CHECK(packed.numel() >= kPlanHeaderBytes, "packed: expected a header of ",
               kPlanHeaderBytes, " bytes, got ", packed.numel());
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  FASTDW_CHECK(header.magic == kPlanMagic && header.version == 1 && header.isa == 0,
               "packed: not the weights of a fastdw plan of version 1");
  FASTDW_CHECK(header.steps == plan.text_steps, "packed: expected the weights of ", plan.text_steps,
               " steps, got ", header.steps);
}

// Once for each of the latest buffers: advice may cost a copy of the weights.
void prefer_huge_pages_once(const Tensor& weights) {
  constexpr unsigned kRemembered = 16;
  static std::atomic<const void*> advised[kRemembered];
  static std::atomic<unsigned> next{0};
  const void* data = weights.const_data_ptr();
  for (const auto& known : advised)
    if (known.load(std::memory_order_relaxed) == data) return;
  advised[next.fetch_add(1) % kRemembered].store(data, std::memory_order_relaxed);
  prefer_huge_pages(data, weights.numel());
}

// The arguments of a call, checked and in the form that the kernels read.
struct PreparedCall {
  std::shared_ptr<const NetworkPlan> plan;
  Tensor images, weights;

  PreparedCall(const Tensor& x, const Tensor& packed, const std::string& program) {
    check_images("x", x, false);
    plan = find_network_plan(program, x.size(2), x.size(3));
    const int64_t channels = plan->values[kNetworkInput].channels;
    FASTDW_CHECK(x.size(1) == channels, "x: expected ", channels, " channels, got ", shape_of(x));
    weights = readable_bytes(packed);
    check_plan_header(weights, *plan);
    prefer_huge_pages_once(weights);
    const Tensor converted = to_float(x);
    const bool reads_directly = plan->reads_planes && converted.is_contiguous();
    images = reads_directly ? converted : to_float_nhwc(converted);
  }
};

}  // namespace

std::vector<Tensor> planned_network(const Tensor& x, const Tensor& packed,
                                    const std::string& program) {
  const PreparedCall call(x, packed, program);
  std::vector<Tensor> outputs = NetworkCall(*call.plan, call.images, call.weights).run();
  if (x.scalar_type() != ScalarType::Float)
    for (Tensor& output : outputs) output = torch::stable::to(output, x.scalar_type());
  return outputs;
}

Tensor profile_network(const Tensor& x, const Tensor& packed, const std::string& program,
                       int64_t runs) {
  FASTDW_CHECK(runs >= 1 && runs <= kMostRuns, "runs: expected 1 to ", kMostRuns, ", got ", runs);
  FASTDW_CHECK(x.dim() != 4 || x.size(0) > 0, "x: expected at least one image");
  const PreparedCall call(x, packed, program);
  const int64_t image_steps = call.plan->image_steps.size();
  const int64_t batch_steps = call.plan->batch_steps.size();
  const Tensor seconds =
      torch::stable::empty({runs, image_steps + batch_steps}, ScalarType::Double);
  auto* row = static_cast<double*>(seconds.mutable_data_ptr());
  NetworkClock clock;
  for (int64_t run = 0; run < runs; ++run, row += image_steps + batch_steps) {
    NetworkCall timed(*call.plan, call.images, call.weights);
    timed.run(&clock);
    clock.read(timed.schedule(), *call.plan, row);
  }
  return seconds;
}

}  // namespace fastdw
