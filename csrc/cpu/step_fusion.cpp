#include "csrc/cpu/step_fusion.h"

#include <algorithm>
#include <optional>

#include "csrc/params_from_tensors.h"

namespace fastdw {
namespace {

int64_t readers_of(const NetworkPlan& plan, int value) {
  int64_t readers = std::count(plan.outputs.begin(), plan.outputs.end(), value);
  for (const auto* steps : {&plan.image_steps, &plan.batch_steps})
    for (const PlanStep& step : *steps)
      for (const int read : {step.input, step.residual, step.gate, step.bias})
        readers += read == value;
  return readers;
}

// A depthwise convolution as a block that ends after it.
InvertedResidualParams block_of(const DepthwiseParams& depthwise) {
  InvertedResidualParams block{};
  block.has_expand = true;
  block.has_project = false;
  block.height = depthwise.height;
  block.width = depthwise.width;
  block.channels_in = block.channels_hidden = block.channels_out = depthwise.channels_in;
  block.height_out = depthwise.height_out;
  block.width_out = depthwise.width_out;
  block.window = depthwise.window;
  block.depthwise_activation = depthwise.activation;
  return block;
}

// Both steps as one, if there is a kernel for it.
std::optional<StepParams> joined(const PlanStep& first, const PlanStep& next) {
  const auto* depthwise = std::get_if<DepthwiseParams>(&next.params);
  if (depthwise != nullptr && depthwise->multiplier > 1) return std::nullopt;
  const auto* block = std::get_if<InvertedResidualParams>(&next.params);
  if (const auto* stem = std::get_if<StemParams>(&first.params)) {
    if (depthwise != nullptr) return StemBlockParams{*stem, block_of(*depthwise)};
    if (block == nullptr || block->has_expand || block->residual) return std::nullopt;
    StemBlockParams fused{*stem, *block};
    fused.block.has_expand = true;  // by the stem
    return fused;
  }
  const auto* expand = std::get_if<PointwiseParams>(&first.params);
  if (expand == nullptr || depthwise == nullptr) return std::nullopt;
  for (const int added : {first.residual, first.gate, first.bias})
    if (added != kNoValue) return std::nullopt;
  InvertedResidualParams fused = block_of(*depthwise);
  fused.channels_in = expand->channels_in;
  fused.expand_activation = expand->activation;
  return fused;
}

bool keeps_row_sums(const PlanStep& step) {
  const auto* block = std::get_if<InvertedResidualParams>(&step.params);
  if (const auto* fused = std::get_if<StemBlockParams>(&step.params)) block = &fused->block;
  return std::holds_alternative<DepthwiseParams>(step.params) ||
         (block != nullptr && !block->has_project);
}

// The value for the sums of the rows of a step's result.
int add_row_sums(NetworkPlan& plan, PlanStep& step) {
  if (step.row_sums != kNoValue) return step.row_sums;
  PlanValue sums = plan.values[step.output];
  sums.width = 1;
  sums.is_row_sums = true;
  sums.whole = kNoValue;
  sums.floats = checked_product("x", {channel_blocks(sums.channels) * kChannelBlock, sums.height});
  step.row_sums = static_cast<int>(plan.values.size());
  plan.values.push_back(sums);
  return step.row_sums;
}

}  // namespace

void fuse_steps(NetworkPlan& plan) {
  std::vector<PlanStep>& steps = plan.image_steps;
  for (size_t index = 0; index + 1 < steps.size(); ++index) {
    const PlanStep &first = steps[index], &next = steps[index + 1];
    if (next.input != first.output || readers_of(plan, first.output) != 1) continue;
    if (plan.values[first.output].whole != kNoValue) continue;
    const std::optional<StepParams> params = joined(first, next);
    if (!params) continue;
    PlanStep fused = next;
    fused.params = *params;
    fused.input = first.input;
    fused.stem_blob = first.blob;
    fused.first_text_step = first.first_text_step;
    fused.multiply_adds += first.multiply_adds;
    steps.erase(steps.begin() + index);
    steps[index] = fused;
  }
}

void pool_row_sums(NetworkPlan& plan) {
  for (PlanStep& step : plan.image_steps) {
    auto* pool = std::get_if<GlobalPoolParams>(&step.params);
    if (pool == nullptr) continue;
    const auto writer =
        std::find_if(plan.image_steps.begin(), plan.image_steps.end(),
                     [&](const PlanStep& other) { return other.output == step.input; });
    if (writer == plan.image_steps.end() || !keeps_row_sums(*writer)) continue;
    step.input = add_row_sums(plan, *writer);
    pool->pixels = plan.values[step.input].height;
  }
}

}  // namespace fastdw
