// What the launchers choose, without launching: for bench/gpu_resources.py.
#include <dlfcn.h>

#include <sstream>
#include <string>

#include "kernels/cuda/classifier_head.h"
#include "kernels/cuda/depthwise_conv.h"
#include "kernels/cuda/inverted_residual.h"
#include "kernels/cuda/pointwise_conv.h"
#include "kernels/cuda/stem_conv.h"

namespace fastdw::cuda {

struct Sizes {
  int64_t batch, height, width, channels_in, channels_hidden, channels_out;  // hidden 0: no expand
  int64_t kernel, stride, pool, block_plan;

  int64_t out(int64_t size) const { return (size + stride - 1) / stride; }
  Window window() const {
    const int64_t pad = kernel / 2;
    return {kernel, kernel, stride, stride, 1, 1, pad, pad};
  }
};

namespace {

// Any address that is aligned will do: nothing is read.
void* somewhere() { return reinterpret_cast<void*>(uintptr_t{1} << 20); }

Epilogue epilogue(Activation activation) {
  auto* values = static_cast<const float*>(somewhere());
  return {values, values, activation};
}

template <class Params>
void set_images(Params& params, const Sizes& sizes, DType dtype) {
  params.x = somewhere();
  params.y = somewhere();
  params.dtype = dtype;
  params.batch = sizes.batch;
  params.channels_in = sizes.channels_in;
}

template <class Params>
void set_window(Params& params, const Sizes& sizes) {
  params.height = sizes.height;
  params.width = sizes.width;
  params.height_out = sizes.out(sizes.height);
  params.width_out = sizes.out(sizes.width);
  params.window = sizes.window();
}

LaunchList plan_depthwise(const Sizes& sizes, DType dtype, const Device& device) {
  DepthwiseParams params{};
  set_images(params, sizes, dtype);
  set_window(params, sizes);
  params.weight = somewhere();
  params.channels_last = true;
  params.epilogue = epilogue(Activation::relu6);
  params.multiplier = 1;
  return plan_depthwise_conv(params, device);
}

LaunchList plan_pointwise(const Sizes& sizes, DType dtype, bool tf32, const Device& device) {
  PointwiseParams params{};
  params.x = params.weight = somewhere();
  params.y = params.workspace = somewhere();
  params.epilogue = epilogue(Activation::relu6);
  params.dtype = dtype;
  params.tf32 = tf32;
  params.pool = sizes.pool != 0;
  params.images = sizes.batch;
  params.pixels = sizes.batch * sizes.height * sizes.width;
  params.channels_in = sizes.channels_in;
  params.channels_out = sizes.channels_out;
  return plan_pointwise_conv(params, device);
}

LaunchList plan_stem(const Sizes& sizes, DType dtype, bool tf32, const Device& device) {
  StemParams params{};
  params.tf32 = tf32;
  set_images(params, sizes, dtype);
  set_window(params, sizes);
  params.weight = somewhere();
  params.epilogue = epilogue(Activation::relu6);
  params.channels_out = sizes.channels_out;
  return plan_stem_conv(params, device);
}

LaunchList plan_block(const Sizes& sizes, DType dtype, bool tf32, const Device& device) {
  InvertedResidualParams params{};
  params.plan = static_cast<BlockPlan>(sizes.block_plan);
  set_images(params, sizes, dtype);
  set_window(params, sizes);
  const bool expands = sizes.channels_hidden > 0;
  if (expands) params.expand_weight = somewhere();
  params.depthwise_weight = params.project_weight = somewhere();
  params.workspace = somewhere();
  params.expand = params.depthwise = epilogue(Activation::relu6);
  params.project = epilogue(expands ? Activation::none : Activation::relu6);
  params.residual = expands && sizes.stride == 1 && sizes.channels_in == sizes.channels_out;
  params.tf32 = tf32;
  params.channels_hidden = expands ? sizes.channels_hidden : sizes.channels_in;
  params.channels_out = sizes.channels_out;
  return plan_inverted_residual(params, device);
}

LaunchList plan_head(const Sizes& sizes, DType dtype, const Device& device) {
  HeadParams params{};
  set_images(params, sizes, dtype);
  params.weight = params.bias = somewhere();
  params.workspace = somewhere();
  params.pixels = sizes.height * sizes.width;
  params.channels_out = sizes.channels_out;
  return plan_classifier_head(params, device);
}

LaunchList plan(const std::string& op, const Sizes& sizes, DType dtype, bool tf32,
                const Device& device) {
  if (op == "depthwise_conv") return plan_depthwise(sizes, dtype, device);
  if (op == "pointwise_conv") return plan_pointwise(sizes, dtype, tf32, device);
  if (op == "stem_conv") return plan_stem(sizes, dtype, tf32, device);
  if (op == "classifier_head") return plan_head(sizes, dtype, device);
  return plan_block(sizes, dtype, tf32, device);
}

// Where in this library a kernel lies: nm tells its name.
uintptr_t offset_of(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0) return 0;
  return reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(info.dli_fbase);
}

std::string as_json(const LaunchList& list) {
  std::ostringstream text;
  text << '[';
  for (int i = 0; i < list.count; ++i) {
    const KernelLaunch& launch = list.launches[i];
    text << (i > 0 ? "," : "") << "{\"name\":\"" << launch.name
         << "\",\"offset\":" << offset_of(launch.kernel) << ",\"blocks\":"
         << static_cast<int64_t>(launch.grid.x) * launch.grid.y * launch.grid.z
         << ",\"threads\":" << launch.block.x << ",\"shared_bytes\":" << launch.shared_bytes
         << ",\"workspace_bytes\":" << list.workspace_bytes << '}';
  }
  text << ']';
  return text.str();
}

}  // namespace
}  // namespace fastdw::cuda

// The launches as JSON, valid until the next call. dtype: 0 fp32, 1 fp16, 2 bf16, 3 fp32 in tf32.
extern "C" __attribute__((visibility("default"))) const char* fastdw_plan(
    const char* op, const fastdw::cuda::Sizes* sizes, int dtype,
    const fastdw::cuda::Device* device) {
  using namespace fastdw::cuda;
  static thread_local std::string text;
  const bool tf32 = dtype == 3;
  text = as_json(plan(op, *sizes, tf32 ? DType::fp32 : static_cast<DType>(dtype), tf32, *device));
  return text.c_str();
}
