// Instances of the classifier head's two kernels, and which of them a shape gets.
#include "kernels/cuda/classifier_head.h"

#include "kernels/cuda/classifier_head.cuh"
#include "kernels/cuda/pointwise_conv.h"

namespace fastdw::cuda {
namespace {

template <class T, class Out, int kLanes>
__global__ void __launch_bounds__(head::kPoolThreads, 4) global_pool(PoolParams params) {
  wait_for_previous_launch();
  head::pool<T, Out, kLanes>(params);
}

template <class T, class X, int kLanes, int kImages, int kOutputs>
__global__ void __launch_bounds__(head::Linear<T, X, kLanes, kImages, kOutputs>::kThreads,
                                  kImages == 4 ? 1 : 2)  // 4: fewer than there are multiprocessors
    linear(LinearParams params) {
  wait_for_previous_launch();
  head::linear<head::Linear<T, X, kLanes, kImages, kOutputs>>(params);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool has_whole_rows(const HeadParams& params) {
  return params.channels_in * element_bytes(params.dtype) % 16 == 0 && is_aligned(params.x) &&
         is_aligned(params.weight);
}

template <class T, class Out, int kLanes>
KernelLaunch pool_launch(const HeadParams& params, void* y) {
  const int64_t blocks = ceil_div(params.channels_in, head::kPoolAcross * kLanes);
  const PoolParams pool{params.x, y, params.pixels, params.channels_in, blocks};
  const dim3 grid(static_cast<unsigned>(params.batch * blocks));
  return make_launch(kLanes == 1 ? "global_pool masked" : "global_pool",
                     global_pool<T, Out, kLanes>, grid, head::kPoolThreads,
                     head::kPoolBytes<kLanes>, pool);
}

template <class T, class X, int kLanes, int kImages, int kOutputs>
KernelLaunch linear_launch(const HeadParams& params, const void* x, const char* name) {
  using Linear = head::Linear<T, X, kLanes, kImages, kOutputs>;
  const int64_t blocks = ceil_div(params.channels_out, Linear::kWarps * kOutputs);
  const LinearParams layer{x,        params.weight, params.bias,        params.bias_is_fp32,
                           params.y, params.batch,  params.channels_in, params.channels_out,
                           blocks};
  const dim3 grid(static_cast<unsigned>(ceil_div(params.batch, kImages) * blocks));
  return make_launch(name, linear<T, X, kLanes, kImages, kOutputs>, grid, Linear::kThreads,
                     Linear::kSharedBytes, layer);
}

// Few images: the weights are all that counts, and a warp an output fills the device. Many: a
// weight is read once for 8 images, a mean once for 4 outputs.
template <class T, class X, int kLanes>
KernelLaunch linear_launch(const HeadParams& params, const void* x) {
  if (params.batch == 1) return linear_launch<T, X, kLanes, 1, 1>(params, x, "linear 1x1");
  if (params.batch <= 4) return linear_launch<T, X, kLanes, 4, 1>(params, x, "linear 4x1");
  return linear_launch<T, X, kLanes, 8, 4>(params, x, "linear 8x4");
}

// More images than that, in the weight's dtype: a matrix product by tiles. (fp32 means by weights
// of 2 bytes are nothing that the tensor cores know.)
constexpr int64_t kMostImages = 8;

LaunchList matrix_product(const HeadParams& params, const void* x, const Device& device) {
  PointwiseParams product{};
  product.x = x;
  product.weight = params.weight;
  if (params.bias_is_fp32)
    product.epilogue.bias = static_cast<const float*>(params.bias);
  else
    product.residual = params.bias;
  product.y = params.y;
  product.dtype = params.dtype;
  product.images = product.pixels = params.batch;
  product.channels_in = params.channels_in;
  product.channels_out = params.channels_out;
  return plan_linear(product, device);
}

// The means lie in the workspace.
template <class T, int kLanes>
void add_launches(const HeadParams& params, const Device& device, LaunchList& list) {
  if (params.weight == nullptr) {
    list.add(pool_launch<T, T, kLanes>(params, params.y));
    return;
  }
  const bool by_tiles = params.batch > kMostImages && (params.pixels == 1 || sizeof(T) == 4);
  const bool pools = params.pixels > 1;
  void* means = params.workspace;
  if (pools) {
    list.workspace_bytes = static_cast<size_t>(params.batch * params.channels_in) * sizeof(float);
    list.add(pool_launch<T, float, kLanes>(params, means));
  }
  if (by_tiles)
    list.add(matrix_product(params, pools ? means : params.x, device).launches[0]);
  else if (pools)
    list.add(linear_launch<T, float, kLanes>(params, means));
  else
    list.add(linear_launch<T, T, kLanes>(params, params.x));
}

template <class T>
void add_launches(const HeadParams& params, const Device& device, LaunchList& list) {
  if (has_whole_rows(params))
    add_launches<T, kPackLanes<T>>(params, device, list);
  else
    add_launches<T, 1>(params, device, list);
}

}  // namespace

LaunchList plan_classifier_head(const HeadParams& params, const Device& device) {
  LaunchList list;
  if (params.dtype == DType::fp32)
    add_launches<float>(params, device, list);
  else if (params.dtype == DType::fp16)
    add_launches<__half>(params, device, list);
  else
    add_launches<__nv_bfloat16>(params, device, list);
  return list;
}

}  // namespace fastdw::cuda
