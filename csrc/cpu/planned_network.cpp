// A whole network as one call. Every worker takes whole images while there are enough; the images
// that are left, or a small batch, are split by rows, step by step. Linear layers run once per
// batch.
#include <algorithm>
#include <cstring>

#include "csrc/cpu/network_plan.h"
#include "csrc/cpu/ops.h"
#include "csrc/cpu/worker_team.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {
namespace {

constexpr uint32_t kPlanMagic = 0x50574446;  // "FDWP"
constexpr int64_t kPlanHeaderBytes = 64;

ReusableBuffer<int64_t{64} << 20>& thread_arena() {
  thread_local ReusableBuffer<int64_t{64} << 20> buffer;
  return buffer;
}

const Kernel<StemParams>& kernel_for(const KernelTable& table, const StemParams&) {
  return table.stem_conv;
}
const Kernel<DepthwiseParams>& kernel_for(const KernelTable& table, const DepthwiseParams&) {
  return table.depthwise_conv;
}
const Kernel<PointwiseParams>& kernel_for(const KernelTable& table, const PointwiseParams&) {
  return table.pointwise_conv;
}
const Kernel<InvertedResidualParams>& kernel_for(const KernelTable& table,
                                                 const InvertedResidualParams&) {
  return table.inverted_residual;
}
const Kernel<GlobalPoolParams>& kernel_for(const KernelTable& table, const GlobalPoolParams&) {
  return table.global_pool;
}
const Kernel<LinearParams>& kernel_for(const KernelTable& table, const LinearParams&) {
  return table.linear;
}

void set_batch(PointwiseParams& params, int64_t images) { params.pixels *= images; }
template <class Params>
void set_batch(Params& params, int64_t images) {
  params.batch = images;
}

void set_weights(StemParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}
void set_weights(DepthwiseParams& params, const BlobWeights& weights) {
  params.weights = weights.depthwise;
}
void set_weights(PointwiseParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}
void set_weights(InvertedResidualParams& params, const BlobWeights& weights) {
  params.expand = weights.expand;
  params.depthwise = weights.depthwise;
  params.project = weights.pointwise;
}
void set_weights(GlobalPoolParams&, const BlobWeights&) {}
void set_weights(LinearParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}

// Consecutive images that go through the steps together, with an arena for them.
struct ImageGroup {
  int64_t first, count;
  float* arena;
};

class NetworkCall {
 public:
  NetworkCall(const NetworkPlan& plan, const Tensor& x, const Tensor& packed)
      : plan_(plan), table_(kernel_table()), x_(x), packed_(packed), batch_(x.size(0)) {
    find_weights(plan.image_steps, image_weights_);
    find_weights(plan.batch_steps, batch_weights_);
    is_channels_last_ = !plan.reads_planes || !x.is_contiguous();
    for (const int index : plan.outputs) outputs_.push_back(empty_output(plan.values[index]));
  }

  std::vector<Tensor> run() {
    if (batch_ == 0) return std::move(outputs_);
    const int64_t workers = worker_count();
    whole_images_ = batch_ / workers;
    const ImageGroup rest{whole_images_ * workers, batch_ % workers, nullptr};
    const int64_t arenas = whole_images_ > 0 ? workers : rest.count;
    const int64_t arena_floats = checked_product("x", {arenas, plan_.arena_floats});
    const auto memory =
        thread_arena().take(arena_floats + checked_product("x", {batch_, plan_.batch_floats}));
    arena_ = memory.data();
    batch_values_ = arena_ + arena_floats;
    rest_ = {rest.first, rest.count, arena_};

    const int64_t whole_rounds = whole_images_ > 0, image_steps = plan_.image_steps.size();
    const int64_t rest_rounds = rest_.count > 0 ? image_steps : 0;
    const int64_t rounds = whole_rounds + rest_rounds + plan_.batch_steps.size();
    const int64_t scratch_floats = most_scratch();
    const auto enter = [&] { return thread_scratch().take(scratch_floats); };
    const auto do_item = [&](int64_t round, int64_t worker, const auto& scratch) {
      if (round < whole_rounds) return run_whole_images(worker, scratch.data());
      const int64_t step = round - whole_rounds;
      if (step < rest_rounds) return run_image_step(step, rest_, worker, workers, scratch.data());
      run_batch_step(step - rest_rounds, worker, workers, scratch.data());
    };
    if (workers == 1) {  // no parallel region: a forked child may have no pool
      const auto scratch = enter();
      for (int64_t round = 0; round < rounds; ++round) do_item(round, 0, scratch);
    } else {
      WorkerTeam(workers).run(rounds, enter, do_item);
    }
    return std::move(outputs_);
  }

 private:
  void find_weights(const std::vector<PlanStep>& steps, std::vector<BlobWeights>& found) const {
    const auto* bytes = static_cast<const uint8_t*>(packed_.const_data_ptr());
    const int64_t size = packed_.numel();
    found.reserve(steps.size());
    for (const PlanStep& step : steps) {
      if (std::holds_alternative<GlobalPoolParams>(step.params)) {
        found.emplace_back();
        continue;
      }
      FASTDW_CHECK(step.weights_offset <= size, "packed: expected at least ", step.weights_offset,
                   " bytes, got ", size, ": truncated");
      found.push_back(read_blob(step.blob_kind, step.blob_shape, bytes + step.weights_offset,
                                size - step.weights_offset));
    }
  }

  Tensor empty_output(const PlanValue& value) const {
    if (value.is_vector) return torch::stable::empty({batch_, value.channels}, ScalarType::Float);
    return torch::stable::empty({batch_, value.channels, value.height, value.width},
                                ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                                MemoryFormat::ChannelsLast);
  }

  int64_t worker_count() const {
    const double threads = torch::stable::get_num_threads();
    const double worth = plan_.multiply_adds * batch_ / kMultiplyAddsPerThread;
    return static_cast<int64_t>(std::clamp(worth, 1.0, threads));
  }

  float* address(int index, const ImageGroup& group) const {
    const PlanValue& value = plan_.values[index];
    switch (value.place) {
      case PlanValue::Place::arena: return group.arena + value.offset * group.count;
      case PlanValue::Place::batch:
        return batch_values_ + value.offset * batch_ + value.floats * group.first;
      case PlanValue::Place::output: break;
      case PlanValue::Place::input: break;
    }
    const bool is_input = value.place == PlanValue::Place::input;
    void* base = is_input ? const_cast<void*>(x_.const_data_ptr())
                          : outputs_[value.output_index].mutable_data_ptr();
    return static_cast<float*>(base) + value.floats * group.first;
  }

  // Calls use(kernel, params) with the parameters of a step for a group of images.
  template <class Use>
  void with_params(const PlanStep& step, const BlobWeights& weights, const ImageGroup& group,
                   const Use& use) const {
    std::visit(
        [&](auto params) {
          using Params = decltype(params);
          set_batch(params, group.count);
          set_weights(params, weights);
          params.x = address(step.input, group);
          params.y = address(step.output, group);
          if constexpr (std::is_same_v<Params, StemParams>)
            params.channels_last = step.input != kNetworkInput || is_channels_last_;
          if constexpr (std::is_same_v<Params, PointwiseParams>)
            params.residual = step.residual == kNoValue ? nullptr : address(step.residual, group);
          use(kernel_for(table_, params), params);
        },
        step.params);
  }

  void run_part(const PlanStep& step, const BlobWeights& weights, const ImageGroup& group,
                int64_t part, int64_t parts, float* scratch) const {
    with_params(step, weights, group, [&](const auto& kernel, const auto& params) {
      const int64_t units = params.units();
      const int64_t begin = units * part / parts, end = units * (part + 1) / parts;
      if (begin < end) kernel.run(params, begin, end, scratch);
    });
  }

  void run_whole_images(int64_t worker, float* scratch) const {
    float* arena = arena_ + worker * plan_.arena_floats;
    for (int64_t image = worker * whole_images_; image < (worker + 1) * whole_images_; ++image)
      for (size_t step = 0; step < plan_.image_steps.size(); ++step)
        run_image_step(step, {image, 1, arena}, 0, 1, scratch);
  }

  void run_image_step(int64_t step, const ImageGroup& group, int64_t part, int64_t parts,
                      float* scratch) const {
    run_part(plan_.image_steps[step], image_weights_[step], group, part, parts, scratch);
  }

  void run_batch_step(int64_t step, int64_t part, int64_t parts, float* scratch) const {
    run_part(plan_.batch_steps[step], batch_weights_[step], {0, batch_, nullptr}, part, parts,
             scratch);
  }

  int64_t most_scratch() const {
    int64_t most = 0;
    const auto measure = [&](const auto& kernel, const auto& params) {
      most = std::max(most, kernel.scratch_floats(params));
    };
    for (size_t step = 0; step < plan_.image_steps.size(); ++step) {
      const PlanStep& image_step = plan_.image_steps[step];
      if (whole_images_ > 0) with_params(image_step, image_weights_[step], {0, 1, arena_}, measure);
      if (rest_.count > 0) with_params(image_step, image_weights_[step], rest_, measure);
    }
    for (size_t step = 0; step < plan_.batch_steps.size(); ++step)
      with_params(plan_.batch_steps[step], batch_weights_[step], {0, batch_, nullptr}, measure);
    return most;
  }

  const NetworkPlan& plan_;
  const KernelTable& table_;
  const Tensor &x_, &packed_;
  const int64_t batch_;
  bool is_channels_last_ = false;
  std::vector<BlobWeights> image_weights_, batch_weights_;
  std::vector<Tensor> outputs_;
  int64_t whole_images_ = 0;  // per worker
  ImageGroup rest_{};
  float *arena_ = nullptr, *batch_values_ = nullptr;
};

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

}  // namespace

std::vector<Tensor> planned_network(const Tensor& x, const Tensor& packed,
                                    const std::string& program) {
  check_images("x", x, false);
  const auto plan = find_network_plan(program, x.size(2), x.size(3));
  const int64_t channels = plan->values[kNetworkInput].channels;
  FASTDW_CHECK(x.size(1) == channels, "x: expected ", channels, " channels, got ", shape_of(x));
  const Tensor weights = readable_bytes(packed);
  check_plan_header(weights, *plan);
  const Tensor converted = to_float(x);
  const bool reads_directly = plan->reads_planes && converted.is_contiguous();
  const Tensor images = reads_directly ? converted : to_float_nhwc(converted);
  std::vector<Tensor> outputs = NetworkCall(*plan, images, weights).run();
  if (x.scalar_type() != ScalarType::Float)
    for (Tensor& output : outputs) output = torch::stable::to(output, x.scalar_type());
  return outputs;
}

}  // namespace fastdw
