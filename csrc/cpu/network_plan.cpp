#include "csrc/cpu/network_plan.h"

#include <algorithm>
#include <list>
#include <mutex>

#include "csrc/cpu/channel_runs.h"
#include "csrc/cpu/chosen_blocking.h"
#include "csrc/cpu/hidden_shares.h"
#include "csrc/cpu/step_fusion.h"
#include "csrc/cpu/value_placement.h"
#include "csrc/params_from_tensors.h"
#include "csrc/reusable_buffer.h"

namespace fastdw {
namespace {

constexpr size_t kCachedPlans = 64;

class Planner {
 public:
  Planner(const std::string& text, int64_t height, int64_t width)
      : program_(parse_program(text)), plan_(std::make_shared<NetworkPlan>()) {
    plan_->text = text;
    plan_->height = height;
    plan_->width = width;
  }

  std::shared_ptr<const NetworkPlan> plan() {
    FASTDW_CHECK(program_.target == "cpu", "program: the weights lie as ", program_.target,
                 " reads them, x is on the CPU");
    plan_->values.resize(program_.values.size());
    plan_->outputs = program_.outputs;
    plan_->text_steps = program_.lines;
    set_value(kNetworkInput, plan_->height, plan_->width);
    find_image_vectors();
    for (const ProgramStep& step : program_.steps) add(step);
    fuse_steps(*plan_);
    pool_row_sums(*plan_);
    share_hidden_channels();
    for (const ChosenBlocking& chosen : chosen_blockings()) block_as(chosen);
    place_values();
    for (PlanStep& step : plan_->image_steps) set_layouts(step);
    return plan_;
  }

 private:
  PlanValue& value(int index) { return plan_->values[index]; }

  void set_value(int index, int64_t height, int64_t width) {
    PlanValue& result = value(index);
    result.channels = program_.values[index].channels;
    result.is_vector = program_.values[index].is_vector;
    result.height = height;
    result.width = width;
    result.floats = checked_product("x", {result.channels, height, width});
  }

  // The vectors that an image's own steps read, and what they are computed from.
  void find_image_vectors() {
    is_read_by_image_.assign(program_.values.size(), false);
    for (auto step = program_.steps.rbegin(); step != program_.steps.rend(); ++step) {
      for (const int vector : {step->gate, step->bias})
        if (vector != kNoValue) is_read_by_image_[vector] = true;
      if (step->kind == StepKind::resize || is_read_by_image_[step->output])
        is_read_by_image_[step->input] = true;
    }
  }

  void add(const ProgramStep& step) {
    if (step.kind == StepKind::concat) return add_concat(step);
    const PlanValue& input = value(step.input);
    Sampling sampling{{}, input.height, input.width};
    if (step.kind == StepKind::resize) {
      sampling.height_out = size_after(step, input.height, step.stride[0], &PlanValue::height);
      sampling.width_out = size_after(step, input.width, step.stride[1], &PlanValue::width);
    } else if (step.shape.kernel_h > 0) {
      try {
        sampling = sampling_of(input.height, input.width, step.shape.kernel_h, step.shape.kernel_w,
                               step.stride, step.padding, step.dilation);
      } catch (const std::runtime_error& error) {
        fail(step.where, ": ", error.what());
      }
    }
    if (program_.values[step.output].is_vector) {
      set_value(step.output, 1, 1);
    } else {
      set_value(step.output, sampling.height_out, sampling.width_out);
    }
    if (step.input == kNetworkInput && step.kind != StepKind::stem_conv)
      plan_->reads_planes = false;
    if (step.residual != kNoValue) {
      const PlanValue &residual = value(step.residual), &output = value(step.output);
      FASTDW_CHECK(residual.height == output.height && residual.width == output.width, step.where,
                   ": residual: expected images of ", output.height, "x", output.width, ", got ",
                   residual.height, "x", residual.width);
      if (step.residual == kNetworkInput) plan_->reads_planes = false;
    }
    const bool whole_batch = step.kind == StepKind::linear && !is_read_by_image_[step.output];
    auto& steps = whole_batch ? plan_->batch_steps : plan_->image_steps;
    const double before = plan_->multiply_adds;
    const StepParams params = params_of(step, sampling);
    const PlanBlob blob{step.blob_kind, step.blob_shape(), step.weights_offset};
    // A pool only adds, and what a resize multiplies counts as little.
    const double multiply_adds = has_weights(params) ? plan_->multiply_adds - before : 0.0;
    steps.push_back({params, step.input, step.output, step.residual, step.gate, step.bias,
                     kNoValue, blob, {},
                     step.text_step, step.text_step, multiply_adds});
  }

  int64_t size_after(const ProgramStep& step, int64_t size, int64_t scale,
                     int64_t PlanValue::*side) {
    if (step.like != kNoValue) return value(step.like).*side;
    return checked_product(step.where.c_str(), {size, scale});
  }

  // The parts write where the whole lies; one that cannot is copied there.
  void add_concat(const ProgramStep& step) {
    const PlanValue first = value(step.parts.front());
    set_value(step.output, first.height, first.width);
    int64_t all_channels = 0, channels = 0;
    for (const int part : step.parts) all_channels += value(part).channels;
    for (const int part : step.parts) {
      const PlanValue& placed = value(part);
      FASTDW_CHECK(placed.height == first.height && placed.width == first.width, step.where,
                   ": in: expected images of ", first.height, "x", first.width, ", got ",
                   placed.height, "x", placed.width);
      const ChannelShuffle shuffle{step.groups, all_channels / step.groups, step.first_channel,
                                   value(step.output).channels};
      const auto runs = runs_of_part(shuffle, channels, placed.channels);
      channels += placed.channels;
      if (runs.size() == 1 && runs[0].keeps_blocks(placed.channels) && can_lie_in_whole(part)) {
        value(part).whole = step.output;
        value(part).first_of_whole = runs[0].first_out / kChannelBlock;  // blocks until placed
      } else {
        for (const ChannelRun& run : runs) copy_channels(step, part, run);
      }
    }
  }

  bool can_lie_in_whole(int index) const {
    const auto& outputs = program_.outputs;
    const bool is_output = std::count(outputs.begin(), outputs.end(), index) > 0;
    return !is_output && plan_->values[index].whole == kNoValue && !is_read_by_stem(index);
  }

  bool is_read_by_stem(int index) const {
    return std::any_of(program_.steps.begin(), program_.steps.end(), [&](const ProgramStep& step) {
      return step.kind == StepKind::stem_conv && step.input == index;
    });
  }

  void copy_channels(const ProgramStep& step, int part, const ChannelRun& run) {
    plan_->image_steps.push_back({run.copy(value(part).height * value(part).width), part,
                                  step.output, kNoValue, kNoValue, kNoValue, kNoValue, {}, {},
                                  step.text_step, step.text_step, 0.0});
  }

  // Over all input channels: a stem, or any other dense one.
  template <class Params>
  Params convolution_of(const ProgramStep& step, const Sampling& sampling) {
    const PlanValue &input = value(step.input), &output = value(step.output);
    plan_->multiply_adds += static_cast<double>(output.floats) * step.shape.kernel_h *
                            step.shape.kernel_w * input.channels;
    Params params{};
    fill_images(params, input, output, sampling);
    params.channels_in = input.channels;
    params.channels_out = output.channels;
    params.activation = step.activation;
    return params;
  }

  StepParams params_of(const ProgramStep& step, const Sampling& sampling) {
    const PlanValue &input = value(step.input), &output = value(step.output);
    const BlobShape& shape = step.shape;
    const double results = output.floats, taps = shape.kernel_h * shape.kernel_w;
    switch (step.kind) {
      case StepKind::stem_conv: return convolution_of<StemParams>(step, sampling);
      case StepKind::dense_conv: return convolution_of<DenseConvParams>(step, sampling);
      case StepKind::depthwise_conv: {
        plan_->multiply_adds += results * taps;
        DepthwiseParams params{};
        fill_images(params, input, output, sampling);
        params.channels_in = input.channels;
        params.multiplier = output.channels / input.channels;
        params.activation = step.activation;
        return params;
      }
      case StepKind::pointwise_conv: {
        plan_->multiply_adds += results * input.channels;
        PointwiseParams params{};
        params.pixels = input.height * input.width;
        params.channels_in = input.channels;
        params.channels_out = output.channels;
        params.activation = step.activation;
        params.has_gate = step.gate != kNoValue;
        if (step.bias != kNoValue) params.bias_image = output.channels;
        return params;
      }
      case StepKind::resize: {
        plan_->multiply_adds += results;
        ResizeParams params{};
        fill_images(params, input, output, sampling);
        params.channels = input.channels;
        params.mode = step.resize_mode;
        return params;
      }
      case StepKind::max_pool: {
        plan_->multiply_adds += results * taps;
        MaxPoolParams params{};
        fill_images(params, input, output, sampling);
        params.channels = input.channels;
        return params;
      }
      case StepKind::block: return block_params_of(step, sampling);
      case StepKind::global_pool: {
        plan_->multiply_adds += input.floats;
        GlobalPoolParams params{};
        params.pixels = params.divisor = input.height * input.width;
        params.channels = input.channels;
        return params;
      }
      case StepKind::concat:
      case StepKind::linear: break;
    }
    plan_->multiply_adds += results * input.channels;
    LinearParams params{};
    params.channels_in = input.channels;
    params.channels_out = output.channels;
    params.activation = step.activation;
    return params;
  }

  InvertedResidualParams block_params_of(const ProgramStep& step, const Sampling& sampling) {
    const PlanValue &input = value(step.input), &output = value(step.output);
    const BlobShape& shape = step.shape;
    FASTDW_CHECK(!step.adds_input || (input.channels == output.channels &&
                                      input.height == output.height && input.width == output.width),
                 step.where, ": residual: input and output differ in shape");
    const double pixels_out = output.floats / output.channels;
    const double expanded = shape.has_expand ? input.floats : 0;
    plan_->multiply_adds +=
        shape.channels_hidden *
        (expanded + pixels_out * (shape.kernel_h * shape.kernel_w + output.channels));
    InvertedResidualParams params{};
    fill_images(params, input, output, sampling);
    params.has_expand = shape.has_expand;
    params.residual = step.adds_input;
    params.channels_in = input.channels;
    params.channels_hidden = shape.channels_hidden;
    params.channels_out = output.channels;
    params.expand_activation = step.expand_activation;
    params.depthwise_activation = step.depthwise_activation;
    params.project_activation = step.activation;
    return params;
  }

  template <class Params>
  static void fill_images(Params& params, const PlanValue& input, const PlanValue& output,
                          const Sampling& sampling) {
    params.height = input.height;
    params.width = input.width;
    params.height_out = output.height;
    params.width_out = output.width;
    if constexpr (!std::is_same_v<Params, ResizeParams>) params.window = sampling.window;
  }

  // Where two workers would take unequal work by rows, and the rounds that follow from it.
  void share_hidden_channels() {
    const int64_t steps = plan_->image_steps.size();
    for (int64_t index = 0; index < steps; ++index) {
      PlanStep& step = plan_->image_steps[index];
      plan_->image_rounds.push_back({index, false});
      auto* block = std::get_if<InvertedResidualParams>(&step.params);
      if (block == nullptr) continue;
      block->hidden_shares = hidden_shares_of(*block);
      if (block->hidden_shares == 1 || !block->has_project) continue;
      plan_->image_rounds.push_back({index, true});
      step.partial_sums = static_cast<int>(plan_->values.size());
      PlanValue sums = value(step.output);
      sums.channels = block->hidden_shares * channel_blocks(block->channels_out) * kChannelBlock;
      sums.floats = checked_product("x", {sums.channels, sums.height, sums.width});
      plan_->values.push_back(sums);
    }
  }

  void block_as(const ChosenBlocking& chosen) {
    const std::string where = "FASTDW_BLOCKING: " + chosen.text;
    const int64_t image_steps = plan_->image_steps.size();
    const int64_t steps = image_steps + plan_->batch_steps.size();
    FASTDW_CHECK(chosen.step < steps, where, ": expected a step from 0 to ", steps - 1, ", got ",
                 chosen.step);
    InvertedResidualParams* block = nullptr;
    if (chosen.step < image_steps) {
      StepParams& params = plan_->image_steps[chosen.step].params;
      block = std::get_if<InvertedResidualParams>(&params);
      if (auto* fused = std::get_if<StemBlockParams>(&params)) block = &fused->block;
    }
    FASTDW_CHECK(block != nullptr, where, ": step ", chosen.step, " is no block");
    const int64_t hidden_blocks = channel_blocks(block->channels_hidden);
    FASTDW_CHECK(chosen.band_rows <= block->height_out, where, ": expected 1 to ",
                 block->height_out, " rows, got ", chosen.band_rows);
    FASTDW_CHECK(chosen.chunk_blocks <= hidden_blocks, where, ": expected 1 to ", hidden_blocks,
                 " blocks of 16 hidden channels, got ", chosen.chunk_blocks);
    block->band_rows = chosen.band_rows;
    block->chunk_blocks = chosen.chunk_blocks;
  }

  // Values in the arena are blocked, except those that a stem reads.
  Layout layout_of(int index) const {
    const PlanValue& placed = plan_->values[index];
    if (placed.is_row_sums) return row_sums_layout(placed.channels, placed.height);
    const int64_t pixels = placed.height * placed.width;
    const bool blocked = placed.place == PlanValue::Place::arena && !is_read_by_stem(index);
    return blocked ? blocked_layout(placed.channels, pixels) : nhwc_layout(placed.channels, pixels);
  }

  void set_layouts(PlanStep& step) {
    const Layout from = value(step.input).layout, to = value(step.output).layout;
    const Layout residual = step.residual == kNoValue ? Layout{} : value(step.residual).layout;
    std::visit(
        [&](auto& params) {
          using Params = std::decay_t<decltype(params)>;
          if constexpr (std::is_same_v<Params, StemParams>) {
            params.y_layout = to;
          } else if constexpr (std::is_same_v<Params, StemBlockParams>) {
            params.block.y_layout = to;
            params.block.x_layout = blocked_layout(params.block.channels_in, 0);
          } else if constexpr (std::is_same_v<Params, GlobalPoolParams>) {
            params.x_layout = from;
          } else if constexpr (!std::is_same_v<Params, LinearParams>) {
            params.x_layout = from;
            params.y_layout = to;
          }
          if constexpr (std::is_same_v<Params, PointwiseParams>) params.residual_layout = residual;
        },
        step.params);
  }

  void place_values() {
    for (size_t index = 0; index < plan_->values.size(); ++index) {
      PlanValue& placed = value(static_cast<int>(index));
      placed.place = placed.is_vector ? PlanValue::Place::batch : PlanValue::Place::arena;
    }
    value(kNetworkInput).place = PlanValue::Place::input;
    for (size_t index = 0; index < plan_->outputs.size(); ++index) {
      value(plan_->outputs[index]).place = PlanValue::Place::output;
      value(plan_->outputs[index]).output_index = static_cast<int>(index);
    }
    for (size_t index = 0; index < plan_->values.size(); ++index) {
      PlanValue& placed = value(static_cast<int>(index));
      const int whole = whole_of(*plan_, static_cast<int>(index));
      placed.place = value(whole).place;
      placed.layout = layout_of(whole);
      placed.first_of_whole *= placed.layout.block;
      if (placed.place != PlanValue::Place::batch) continue;
      placed.offset = plan_->batch_floats;
      plan_->batch_floats += round_up(placed.floats, kArenaAlignment);
    }
    place_in_arena(*plan_);
  }

  Program program_;
  std::vector<bool> is_read_by_image_;
  std::shared_ptr<NetworkPlan> plan_;
};

bool is_plan_of(const NetworkPlan& plan, const std::string& text, int64_t height, int64_t width) {
  return plan.height == height && plan.width == width && plan.text == text;
}

}  // namespace

std::shared_ptr<const NetworkPlan> find_network_plan(const std::string& text, int64_t height,
                                                     int64_t width) {
  // Most threads run one network at one size: no lock and no search for them.
  thread_local std::shared_ptr<const NetworkPlan> latest;
  if (latest && is_plan_of(*latest, text, height, width)) return latest;

  static std::mutex mutex;
  static std::list<std::shared_ptr<const NetworkPlan>> plans;  // the latest used first
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(plans.begin(), plans.end(), [&](const auto& plan) {
      return is_plan_of(*plan, text, height, width);
    });
    if (found != plans.end()) {
      plans.splice(plans.begin(), plans, found);
      return latest = plans.front();
    }
  }
  latest = Planner(text, height, width).plan();
  const std::lock_guard<std::mutex> lock(mutex);
  plans.push_front(latest);
  if (plans.size() > kCachedPlans) plans.pop_back();
  return latest;
}

}  // namespace fastdw
