// A block whose tiles fit into no thread block: its convolutions are launched one by one, the
// hidden tensors in the workspace.
#include "kernels/cuda/depthwise_conv.h"
#include "kernels/cuda/inverted_residual_tiling.h"
#include "kernels/cuda/pointwise_conv.h"

namespace fastdw::cuda {
namespace {

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

PointwiseParams pointwise_params(const InvertedResidualParams& params, const void* x,
                                 const void* weight, void* y, const Epilogue& epilogue) {
  PointwiseParams result{};
  result.x = x;
  result.weight = weight;
  result.y = y;
  result.epilogue = epilogue;
  result.dtype = params.dtype;
  result.tf32 = params.tf32;
  result.images = params.batch;
  return result;
}

void add_all(LaunchList& list, const LaunchList& more) {
  for (int i = 0; i < more.count; ++i) list.add(more.launches[i]);
  list.cycles += more.cycles;
}

// Fitted to times of an H100, as the other planners' models.
double depthwise_cycles(const DepthwiseParams& params, const Device& device) {
  const int64_t pixels = params.height * params.width + params.height_out * params.width_out;
  const int64_t bytes = params.batch * pixels * params.channels_in * element_bytes(params.dtype);
  return 5000 + static_cast<double>(bytes) / (11.0 * static_cast<double>(device.multiprocessors));
}

// The convolutions one by one; the hidden tensors lie at `expanded` and `filtered`.
LaunchList plan_one_by_one(const InvertedResidualParams& params, const Device& device,
                           void* expanded, void* filtered) {
  LaunchList list;
  const bool expands = params.expand_weight != nullptr;
  if (expands) {
    PointwiseParams expand =
        pointwise_params(params, params.x, params.expand_weight, expanded, params.expand);
    expand.pixels = params.batch * params.height * params.width;
    expand.channels_in = params.channels_in;
    expand.channels_out = params.channels_hidden;
    add_all(list, plan_pointwise_conv(expand, device));
  }
  DepthwiseParams depthwise{};
  depthwise.x = expands ? expanded : params.x;
  depthwise.weight = params.depthwise_weight;
  depthwise.y = filtered;
  depthwise.channels_last = true;
  depthwise.epilogue = params.depthwise;
  depthwise.dtype = params.dtype;
  depthwise.batch = params.batch;
  depthwise.height = params.height;
  depthwise.width = params.width;
  depthwise.channels_in = params.channels_hidden;
  depthwise.multiplier = 1;
  depthwise.height_out = params.height_out;
  depthwise.width_out = params.width_out;
  depthwise.window = params.window;
  add_all(list, plan_depthwise_conv(depthwise, device));
  list.cycles += depthwise_cycles(depthwise, device);
  PointwiseParams project =
      pointwise_params(params, filtered, params.project_weight, params.y, params.project);
  project.residual = params.residual ? params.x : nullptr;
  project.pixels = params.batch * params.height_out * params.width_out;
  project.channels_in = params.channels_hidden;
  project.channels_out = params.channels_out;
  add_all(list, plan_pointwise_conv(project, device));
  return list;
}

}  // namespace

// The hidden tensors lie in the workspace. The single launches need none.
LaunchList plan_block_one_by_one(const InvertedResidualParams& params, const Device& device) {
  const int64_t row = params.batch * params.channels_hidden * element_bytes(params.dtype);
  const size_t expanded =
      params.expand_weight == nullptr
          ? 0
          : static_cast<size_t>(round_up(row * params.height * params.width, 256));
  const size_t filtered = static_cast<size_t>(row * params.height_out * params.width_out);
  char* start = static_cast<char*>(params.workspace);
  LaunchList list =
      plan_one_by_one(params, device, start, start == nullptr ? nullptr : start + expanded);
  list.workspace_bytes = expanded + filtered;
  return list;
}

}  // namespace fastdw::cuda
