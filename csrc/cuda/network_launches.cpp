#include "csrc/cuda/network_launches.h"

#include <algorithm>
#include <utility>

#include "csrc/arena_placement.h"
#include "csrc/params_from_tensors.h"
#include "kernels/cuda/classifier_head.h"
#include "kernels/cuda/depthwise_conv.h"
#include "kernels/cuda/inverted_residual.h"
#include "kernels/cuda/pointwise_conv.h"
#include "kernels/cuda/stem_conv.h"

namespace fastdw::cuda {
namespace {

constexpr int64_t kValueAlignment = 256;  // as the allocator's

// Sizes that every step with a window has.
template <class Params>
void fill_images(Params& params, int64_t batch, const NetworkLaunches::Value& input,
                 const NetworkLaunches::Value& output, const Window& window) {
  params.batch = batch;
  params.height = input.height;
  params.width = input.width;
  params.channels_in = input.channels;
  params.height_out = output.height;
  params.width_out = output.width;
  params.window = window;
}

}  // namespace

NetworkLaunches::NetworkLaunches(Program program, const NetworkShape& shape, const Device& device,
                                 int64_t packed_bytes)
    : program_(std::move(program)), shape_(shape), device_(device), packed_bytes_(packed_bytes) {
  values_.resize(program_.values.size());
  values_[kNetworkInput] = {program_.values[kNetworkInput].channels, shape_.height, shape_.width,
                            false};
  add_steps();
  place_values();
  if (shape_.batch > 0) place_scratch();  // else nothing is launched
}

bool NetworkLaunches::needs_channels_last(const Program& program) {
  return std::any_of(program.steps.begin(), program.steps.end(), [](const ProgramStep& step) {
    const bool reads = step.input == kNetworkInput || step.residual == kNetworkInput;
    return reads && step.kind != StepKind::stem_conv;
  });
}

int NetworkLaunches::readers(int value) const {
  const auto& outputs = program_.outputs;
  int count = static_cast<int>(std::count(outputs.begin(), outputs.end(), value));
  for (const ProgramStep& step : program_.steps)
    count += (step.input == value) + (step.residual == value);
  return count;
}

// A global pool joins the 1x1 convolution before it, or else the linear layer behind it, where
// nothing else reads what lies between them.
void NetworkLaunches::add_steps() {
  for (const ProgramStep& program_step : program_.steps) {
    Step next{program_step};
    Step* last = steps_.empty() ? nullptr : &steps_.back();
    const bool reads_last = last != nullptr && program_step.input == last->step.output &&
                            program_step.residual == kNoValue && readers(program_step.input) == 1;
    set_size(next);
    if (reads_last && program_step.kind == StepKind::global_pool &&
        last->step.kind == StepKind::pointwise_conv) {
      last->step.output = program_step.output;
      last->pool = true;
    } else if (reads_last && program_step.kind == StepKind::linear &&
               last->step.kind == StepKind::global_pool) {
      next.step.input = last->step.input;
      next.pool = true;
      *last = next;
    } else {
      steps_.push_back(next);
    }
  }
}

void NetworkLaunches::set_size(Step& step) {
  const ProgramStep& from = step.step;
  const Value& input = values_[from.input];
  Value& output = values_[from.output];
  Sampling sampling{{}, input.height, input.width};
  if (from.shape.kernel_h > 0) {
    try {
      sampling = sampling_of(input.height, input.width, from.shape.kernel_h, from.shape.kernel_w,
                             from.stride, from.padding, from.dilation);
    } catch (const std::runtime_error& error) {
      fail(from.where, ": ", error.what());
    }
  }
  step.window = sampling.window;
  const ProgramValue& declared = program_.values[from.output];
  output = {declared.channels, sampling.height_out, sampling.width_out, declared.is_vector};
  if (output.is_vector) output.height = output.width = 1;
  checked_product("x", {shape_.batch, output.channels, output.height, output.width});
  const auto same_size = [&](const Value& other) {
    return other.height == output.height && other.width == output.width;
  };
  FASTDW_CHECK(from.residual == kNoValue || same_size(values_[from.residual]), from.where,
               ": residual: expected images of ", output.height, "x", output.width);
  FASTDW_CHECK(!from.adds_input || (same_size(input) && input.channels == output.channels),
               from.where, ": residual: input and output differ in shape");
}

void NetworkLaunches::place_values() {
  std::vector<int> last_read(values_.size(), kNoValue);
  for (int index = 0; index < steps(); ++index) {
    last_read[steps_[index].step.input] = index;
    const int residual = steps_[index].step.residual;
    if (residual != kNoValue) last_read[residual] = index;
  }
  for (size_t index = 0; index < program_.outputs.size(); ++index)
    values_[program_.outputs[index]].output_index = static_cast<int>(index);
  ArenaPlacement arena(kValueAlignment);
  for (int index = 0; index < steps(); ++index) {
    arena.begin_step(index);
    const int output = steps_[index].step.output;
    Value& placed = values_[output];
    if (placed.output_index != kNoValue) continue;
    const int64_t bytes = shape_.batch * placed.channels * placed.height * placed.width *
                          element_bytes(shape_.dtype);
    placed.offset_bytes = arena.place(bytes, std::max(last_read[output], index));
  }
  arena_bytes_ = arena.size();
}

// The steps' scratch lies in one place, behind the values: they run one after another.
void NetworkLaunches::place_scratch() {
  auto* anywhere = reinterpret_cast<uint8_t*>(kValueAlignment);  // aligned as the real ones are
  const std::vector<void*> outputs(program_.outputs.size(), anywhere);
  const NetworkMemory nowhere{anywhere, anywhere, nullptr, anywhere, outputs};
  scratch_offset_ = round_up(arena_bytes_, kValueAlignment);
  for (int index = 0; index < steps(); ++index) {
    const auto bytes = static_cast<int64_t>(launches(index, nowhere).workspace_bytes);
    steps_[index].has_scratch = bytes > 0;
    arena_bytes_ = std::max(arena_bytes_, scratch_offset_ + bytes);
  }
}

bool NetworkLaunches::reads_input(int step) const {
  const ProgramStep& from = steps_[step].step;
  return from.input == kNetworkInput || from.residual == kNetworkInput;
}

bool NetworkLaunches::writes_output(int step) const {
  const auto is_output = [&](int value) {
    return value != kNoValue && values_[value].output_index != kNoValue;
  };
  const ProgramStep& from = steps_[step].step;
  return is_output(from.output) || is_output(from.input) || is_output(from.residual);
}

bool NetworkLaunches::uses_arena(int step) const {
  const auto lies_there = [&](int value) {
    return value != kNoValue && value != kNetworkInput && values_[value].output_index == kNoValue;
  };
  const ProgramStep& from = steps_[step].step;
  return steps_[step].has_scratch || lies_there(from.output) || lies_there(from.input) ||
         lies_there(from.residual);
}

const void* NetworkLaunches::read(int value, const NetworkMemory& memory) const {
  if (value == kNetworkInput) return memory.x;
  return written(value, memory);
}

void* NetworkLaunches::written(int value, const NetworkMemory& memory) const {
  const Value& placed = values_[value];
  if (placed.output_index != kNoValue) return memory.outputs[placed.output_index];
  return memory.arena + placed.offset_bytes;
}

Epilogue NetworkLaunches::epilogue(const ConvWeights& weights, Activation activation) const {
  return {nullptr, static_cast<const float*>(weights.bias), activation};
}

LaunchList NetworkLaunches::launches(int index, const NetworkMemory& memory) const {
  const Step& step = steps_[index];
  const StepWeights weights =
      find_step_weights(step.step, shape_.dtype, memory.packed, packed_bytes_);
  switch (step.step.kind) {
    case StepKind::stem_conv: return stem_conv(step, weights, memory);
    case StepKind::depthwise_conv: return depthwise_conv(step, weights, memory);
    case StepKind::pointwise_conv: return pointwise_conv(step, weights, memory);
    case StepKind::block: return block(step, weights, memory);
    case StepKind::dense_conv:
    case StepKind::resize:
    case StepKind::max_pool:
    case StepKind::concat: fail(step.step.where, ": only the CPU runs this step");
    case StepKind::global_pool:
    case StepKind::linear: break;
  }
  return head(step, weights, memory);
}

LaunchList NetworkLaunches::stem_conv(const Step& step, const StepWeights& weights,
                                      const NetworkMemory& memory) const {
  const Value &input = values_[step.step.input], &output = values_[step.step.output];
  StemParams params{};
  params.x = read(step.step.input, memory);
  params.weight = weights.pointwise.weight;
  params.y = written(step.step.output, memory);
  params.channels_last = step.step.input != kNetworkInput || shape_.channels_last;
  params.epilogue = epilogue(weights.pointwise, step.step.activation);
  params.dtype = shape_.dtype;
  params.tf32 = shape_.tf32;
  params.channels_out = output.channels;
  fill_images(params, shape_.batch, input, output, step.window);
  return plan_stem_conv(params, device_);
}

LaunchList NetworkLaunches::depthwise_conv(const Step& step, const StepWeights& weights,
                                           const NetworkMemory& memory) const {
  const Value &input = values_[step.step.input], &output = values_[step.step.output];
  DepthwiseParams params{};
  params.x = read(step.step.input, memory);
  params.weight = weights.depthwise.weight;
  params.y = written(step.step.output, memory);
  params.channels_last = true;
  params.epilogue = epilogue(weights.depthwise, step.step.activation);
  params.dtype = shape_.dtype;
  params.multiplier = output.channels / input.channels;
  fill_images(params, shape_.batch, input, output, step.window);
  return plan_depthwise_conv(params, device_);
}

LaunchList NetworkLaunches::pointwise_conv(const Step& step, const StepWeights& weights,
                                           const NetworkMemory& memory) const {
  const Value &input = values_[step.step.input], &output = values_[step.step.output];
  PointwiseParams params{};
  params.x = read(step.step.input, memory);
  params.weight = weights.pointwise.weight;
  if (step.step.residual != kNoValue) params.residual = read(step.step.residual, memory);
  params.y = written(step.step.output, memory);
  params.epilogue = epilogue(weights.pointwise, step.step.activation);
  params.dtype = shape_.dtype;
  params.tf32 = shape_.tf32;
  params.pool = step.pool;
  params.images = shape_.batch;
  params.pixels = shape_.batch * input.height * input.width;
  params.channels_in = input.channels;
  params.channels_out = output.channels;
  params.workspace = memory.arena + scratch_offset_;
  return plan_pointwise_conv(params, device_);
}

LaunchList NetworkLaunches::block(const Step& step, const StepWeights& weights,
                                  const NetworkMemory& memory) const {
  const ProgramStep& from = step.step;
  const Value &input = values_[from.input], &output = values_[from.output];
  InvertedResidualParams params{};
  params.x = read(from.input, memory);
  params.expand_weight = weights.expand.weight;
  params.depthwise_weight = weights.depthwise.weight;
  params.project_weight = weights.pointwise.weight;
  params.y = written(from.output, memory);
  params.expand = epilogue(weights.expand, from.expand_activation);
  params.depthwise = epilogue(weights.depthwise, from.depthwise_activation);
  params.project = epilogue(weights.pointwise, from.activation);
  params.residual = from.adds_input;
  params.dtype = shape_.dtype;
  params.tf32 = shape_.tf32;
  params.channels_hidden = from.shape.channels_hidden;
  params.channels_out = output.channels;
  fill_images(params, shape_.batch, input, output, step.window);
  params.plan = shape_.wishes.blocks;
  params.workspace = memory.arena + scratch_offset_;
  params.counters = memory.counters;
  return plan_inverted_residual(params, device_);
}

LaunchList NetworkLaunches::head(const Step& step, const StepWeights& weights,
                                 const NetworkMemory& memory) const {
  const Value &input = values_[step.step.input], &output = values_[step.step.output];
  HeadParams params{};
  params.x = read(step.step.input, memory);
  params.weight = weights.pointwise.weight;  // null: the pool alone
  params.bias = weights.pointwise.bias;
  params.y = written(step.step.output, memory);
  params.dtype = shape_.dtype;
  params.batch = shape_.batch;
  params.pixels = input.is_vector ? 1 : input.height * input.width;
  params.channels_in = input.channels;
  params.channels_out = output.channels;
  params.workspace = memory.arena + scratch_offset_;
  return plan_classifier_head(params, device_);
}

}  // namespace fastdw::cuda
