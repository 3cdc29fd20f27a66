// One 16 x 16 product of a warp, to test ldmatrix, mma and the shuffles: y = a b^T, k up to 64.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.cuh"

namespace fastdw::cuda {
namespace {

constexpr int kSize = 16, kDepth = 64;

template <class T>
struct Params {
  const T* a;  // [16][64]
  const T* b;  // [16][64]
  float* y;    // [16][16]
};

template <class Math, class T>
__global__ void product_kernel(const Params<T> p) {
  SharedTile<T, kDepth> a{reinterpret_cast<T*>(dynamic_shared_memory())};
  SharedTile<T, kDepth> b{a.data + kSize * kDepth};
  constexpr int kChunks = SharedTile<T, kDepth>::kChunks;
  for (int i = fragment::lane(); i < kSize * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks;
    copy_async(a.chunk(row, chunk), p.a + row * kDepth + chunk * kPackLanes<T>, true);
    copy_async(b.chunk(row, chunk), p.b + row * kDepth + chunk * kPackLanes<T>, true);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();
  float sums[1][2][4] = {};
  multiply<Math, T>(sums, a, 0, 0, b, 0, 0, kDepth / kStepDepth<T>);
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      store_global_if(p.y + fragment::row(i) * kSize + 8 * n + fragment::column(i), sums[0][n][i],
                      true);
}

template <class Math, class T>
cudaError_t run_product(const void* a, const void* b, float* y) {
  const Params<T> params{static_cast<const T*>(a), static_cast<const T*>(b), y};
  return run(make_launch("product", product_kernel<Math, T>, dim3(1), 32,
                         2 * kSize * kDepth * sizeof(T), params),
             nullptr);
}

struct ShuffleParams {
  int* results;  // [5][32]
};

__global__ void shuffle_kernel(const ShuffleParams p) {
  const int lane = fragment::lane();
  const unsigned all = ~0u;
  int* results = p.results + lane;
  store_global_if(results, __shfl_sync(all, lane, 5), true);
  store_global_if(results + 32, __shfl_up_sync(all, lane, 3, 8), true);
  store_global_if(results + 64, __shfl_down_sync(all, lane, 3, 16), true);
  store_global_if(results + 96, __shfl_xor_sync(all, lane, 9), true);
  store_global_if(results + 128, static_cast<int>(__ballot_sync(all, lane % 3 == 0)), true);
}

}  // namespace
}  // namespace fastdw::cuda

// kind: 0 fp32 exactly, 1 fp32 in tf32, 2 fp16, 3 bf16.
extern "C" __attribute__((visibility("default"))) int fastdw_product_run(int kind, const void* a,
                                                                         const void* b, float* y) {
  using namespace fastdw::cuda;
  switch (kind) {
    case 0: return run_product<Exact, float>(a, b, y);
    case 1: return run_product<Tf32, float>(a, b, y);
    case 2: return run_product<Exact, __half>(a, b, y);
    default: return run_product<Exact, __nv_bfloat16>(a, b, y);
  }
}

extern "C" __attribute__((visibility("default"))) int fastdw_shuffle_run(int* results) {
  using namespace fastdw::cuda;
  return run(make_launch("shuffle", shuffle_kernel, dim3(1), 32, 0, ShuffleParams{results}),
             nullptr);
}
