// What the plan of a network does, as JSON: how a call is cut over the threads, the memory it
// takes, and of each step its sizes, its arithmetic, its bytes and the blocking that its kernel
// chose.
#include <unistd.h>

#include <cstring>

#include "csrc/cpu/network_schedule.h"
#include "csrc/cpu/ops.h"
#include "csrc/json_text.h"
#include "csrc/parallel_units.h"

namespace fastdw {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

struct CacheLevel {
  const char* name;
  int64_t bytes;  // 0 where the system does not tell
};

std::vector<CacheLevel> cache_levels() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return {{"L1", std::max(sysconf(_SC_LEVEL1_DCACHE_SIZE), 0L)},
          {"L2", std::max(sysconf(_SC_LEVEL2_CACHE_SIZE), 0L)},
          {"L3", std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L)}};
#else
  return {};
#endif
}

const char* smallest_cache_of(int64_t bytes) {
  for (const CacheLevel& level : cache_levels())
    if (bytes <= level.bytes) return level.name;
  return "memory";
}

const char* kind_of(const PlanStep& step) {
  if (std::holds_alternative<GlobalPoolParams>(step.params)) return "global_pool";
  if (std::holds_alternative<StemBlockParams>(step.params)) return "stem_block";
  if (step.has_stem_blob()) return "expand_depthwise";
  if (std::holds_alternative<DenseConvParams>(step.params)) return "dense_conv";
  if (std::holds_alternative<ResizeParams>(step.params)) return "resize";
  if (std::holds_alternative<CopyChannelsParams>(step.params)) return "concat";
  if (std::holds_alternative<MaxPoolParams>(step.params)) return "max_pool";
  switch (step.blob.kind) {
    case BlobKind::depthwise_conv: return "depthwise_conv";
    case BlobKind::pointwise_conv: return "pointwise_conv";
    case BlobKind::stem_conv: return "stem_conv";
    case BlobKind::separable_block: return "separable_block";
    case BlobKind::inverted_residual: return "inverted_residual";
    case BlobKind::classifier_head: break;
  }
  return "classifier_head";
}

std::vector<int64_t> shape_of(const PlanValue& value, int64_t batch) {
  if (value.is_vector) return {batch, value.channels};
  return {batch, value.channels, value.height, value.width};
}

// The kernel's notes as members of the object that is open.
void add_note(void* to, const char* name, int64_t value) {
  auto& json = *static_cast<JsonText*>(to);
  static constexpr char kFloats[] = "_floats";
  const size_t length = std::strlen(name), suffix = sizeof kFloats - 1;
  const bool is_memory = length > suffix && std::strcmp(name + length - suffix, kFloats) == 0;
  if (!is_memory) {
    json.add(name, value);
    return;
  }
  if (value == 0) return;
  const std::string part(name, length - suffix);
  json.add((part + "_bytes").c_str(), value * kFloatBytes);
  json.add((part + "_fits").c_str(), smallest_cache_of(value * kFloatBytes));
}

class Explanation {
 public:
  Explanation(const NetworkPlan& plan, int64_t batch, int64_t threads)
      : plan_(plan),
        table_(kernel_table()),
        channels_last_(!plan.reads_planes),
        schedule_(schedule_of(plan, table_, batch, channels_last_, threads)) {}

  std::string text() {
    json_.begin_object().add("isa", table_.isa);
    const PlanValue& x = plan_.values[kNetworkInput];
    json_.add("input_shape", shape_of(x, schedule_.batch));
    json_.begin_object("caches");
    for (const CacheLevel& level : cache_levels()) json_.add(level.name, level.bytes);
    json_.end_object();
    add_schedule();
    add_memory();
    json_.begin_array("steps");
    for (const PlanStep& step : plan_.image_steps) add_step(step, false);
    for (const PlanStep& step : plan_.batch_steps) add_step(step, true);
    return json_.end_array().end_object().text();
  }

 private:
  void add_schedule() {
    json_.begin_object("schedule")
        .add("workers", schedule_.workers)
        .add("whole_images_per_worker", schedule_.whole_images)
        .add("images_split_by_rows", schedule_.rest_images)
        .end_object();
  }

  // What a call takes beside x and the packed weights, x being contiguous fp32.
  void add_memory() {
    const int64_t arena = (schedule_.arena_floats + schedule_.batch_floats) * kFloatBytes;
    const int64_t scratch = schedule_.scratch_floats * kFloatBytes;
    const PlanValue& x = plan_.values[kNetworkInput];
    const int64_t copy =
        plan_.reads_planes || x.channels == 1 ? 0 : x.floats * schedule_.batch * kFloatBytes;
    int64_t outputs = 0;
    for (const int index : plan_.outputs)
      outputs += plan_.values[index].floats * schedule_.batch * kFloatBytes;
    json_.begin_object("memory")
        .add("arena_bytes", arena)
        .add("scratch_bytes_per_worker", scratch)
        .add("output_bytes", outputs)
        .add("input_copy_bytes", copy)
        .add("peak_bytes", arena + schedule_.workers * scratch + outputs + copy)
        .end_object();
  }

  void add_step(const PlanStep& step, bool whole_batch) {
    const int64_t batch = schedule_.batch;
    const PlanValue &input = plan_.values[step.input], &output = plan_.values[step.output];
    json_.begin_object().add("kind", kind_of(step)).add("program_step", step.first_text_step);
    json_.add("last_program_step", step.last_text_step);
    json_.add("input_shape", shape_of(input, batch)).add("output_shape", shape_of(output, batch));
    json_.add("multiply_adds", static_cast<int64_t>(step.multiply_adds) * batch);
    add_geometry(step.params);
    json_.begin_object("bytes")
        .add("x", input.floats * batch * kFloatBytes)
        .add("y", output.floats * batch * kFloatBytes)
        .add("residual", residual_floats(step) * batch * kFloatBytes)
        .add("weights", has_weights(step.params) ? bytes_of(step) : int64_t{0})
        .end_object();
    const bool is_split = whole_batch || schedule_.whole_images == 0;
    const int64_t images = whole_batch ? batch : is_split ? schedule_.rest_images : 1;
    with_kernel(table_, step, images, channels_last_, [&](const auto& kernel, const auto& params) {
      add_blocking(kernel, params, is_split ? schedule_.workers : 1);
    });
    json_.end_object();
  }

  static int64_t bytes_of(const PlanStep& step) {
    const int64_t own = blob_bytes(step.blob.kind, step.blob.shape);
    if (!step.has_stem_blob()) return own;
    return own + blob_bytes(step.stem_blob.kind, step.stem_blob.shape);
  }

  void add_geometry(const StepParams& step_params) {
    if (const auto* fused = std::get_if<StemBlockParams>(&step_params)) {
      add_geometry(fused->stem);
      return;
    }
    std::visit(
        [&](const auto& params) {
          using Params = std::decay_t<decltype(params)>;
          constexpr bool is_block = std::is_same_v<Params, InvertedResidualParams>;
          if constexpr (is_block) json_.add("channels_hidden", params.channels_hidden);
          if constexpr (is_block || std::is_same_v<Params, DepthwiseParams> ||
                        std::is_same_v<Params, DenseConvParams> ||
                        std::is_same_v<Params, MaxPoolParams> ||
                        std::is_same_v<Params, StemParams>) {
            const Window& window = params.window;
            json_.add("kernel", std::vector<int64_t>{window.kernel_h, window.kernel_w});
            json_.add("stride", std::vector<int64_t>{window.stride_h, window.stride_w});
          }
        },
        step_params);
  }

  // Read once more than x is, by the step that adds it.
  int64_t residual_floats(const PlanStep& step) const {
    if (step.residual != kNoValue) return plan_.values[step.residual].floats;
    const auto* block = std::get_if<InvertedResidualParams>(&step.params);
    return block != nullptr && block->residual ? plan_.values[step.input].floats : 0;
  }

  template <class Params>
  void add_blocking(const Kernel<Params>& kernel, const Params& params, int64_t parts) {
    std::vector<int64_t> units;
    for (int64_t part = 0; part < parts; ++part) {
      const UnitRange range = units_of_part(params.units(), part, parts);
      units.push_back(range.end - range.begin);
    }
    json_.begin_object("split").add("units", params.units());
    json_.add("whole_images", parts == 1 && schedule_.workers > 1);
    json_.add("units_of_each_worker", units).end_object();
    json_.add("scratch_bytes", kernel.scratch_floats(params) * kFloatBytes);
    json_.begin_object("blocking");
    if (schedule_.batch > 0) kernel.describe(params, 0, units.front(), Notes{&json_, add_note});
    json_.end_object();
  }

  const NetworkPlan& plan_;
  const KernelTable& table_;
  const bool channels_last_;
  const NetworkSchedule schedule_;
  JsonText json_;
};

}  // namespace

std::string explain_network(const std::string& program, int64_t batch, int64_t height,
                            int64_t width, int64_t threads) {
  FASTDW_CHECK(batch >= 1, "batch: expected at least 1, got ", batch);
  FASTDW_CHECK(height >= 1 && width >= 1, "height, width: expected at least 1, got ", height,
               " and ", width);
  FASTDW_CHECK(threads >= 1, "threads: expected at least 1, got ", threads);
  const auto plan = find_network_plan(program, height, width);
  checked_product("x", {batch, plan->values[kNetworkInput].floats});
  return Explanation(*plan, batch, threads).text();
}

}  // namespace fastdw
