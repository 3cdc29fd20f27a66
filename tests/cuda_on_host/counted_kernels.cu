// Kernels whose traffic is known by hand: one warp of them each, to test the counters.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.cuh"

namespace fastdw::cuda {
namespace {

struct Params {
  const float* in;
  float* out;
  int stride;  // floats between what neighbouring lanes touch
  int lanes;   // that take part
  int visits;
};

// Visit i: lane t reads in[t * stride + i]; lane 0 is done with all its visits before lane 1
// begins.
__global__ void global_kernel(const Params p) {
  const int lane = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i < p.visits; ++i)
    sum += load_global_or_zero(p.in + lane * p.stride + i, lane < p.lanes);
  store_global_if(p.out + lane, sum, lane < p.lanes);
}

// The lanes that take part write and read floats that far apart.
__global__ void shared_kernel(const Params p) {
  const int lane = static_cast<int>(threadIdx.x);
  float* mine = reinterpret_cast<float*>(dynamic_shared_memory()) + lane * p.stride;
  for (int i = 0; i < p.visits; ++i) store_shared_if(mine, 1.f, lane < p.lanes);
}

// 16 bytes a lane. Further visits: all read what lane 0 wrote.
__global__ void wide_kernel(const Params p) {
  const int lane = static_cast<int>(threadIdx.x);
  auto* packs = reinterpret_cast<WidePack<float>*>(dynamic_shared_memory());
  store_shared_if(packs + lane * p.stride / 4, {}, lane < p.lanes);
  __syncwarp();
  for (int i = 1; i < p.visits; ++i) load_shared(packs);
}

// Rows of 16 bytes that far apart, brought by cp.async and read by ldmatrix; a product of them.
__global__ void matrix_kernel(const Params p) {
  const int lane = static_cast<int>(threadIdx.x);
  float* row = reinterpret_cast<float*>(dynamic_shared_memory()) + lane * p.stride;
  copy_async(row, p.in + lane * 4, lane < p.lanes);
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();
  uint32_t parts[4];
  load_matrices(parts, row);
  float sums[4] = {};
  mma_16x8x16<__half>(sums, parts, parts[0], parts[1]);
  store_global_if(p.out + lane, fmaf(sums[0], 2.f, sums[1]), true);
}

// Twice: p.lanes stores are dealt to the lanes, so that the first lanes may have one more; then the
// lanes meet. The store of one more falls into the bank of the next lane.
__global__ void uneven_kernel(const Params p) {
  const int lane = static_cast<int>(threadIdx.x);
  float* floats = reinterpret_cast<float*>(dynamic_shared_memory());
  for (int i = 0; i < 2; ++i) {
    for (int j = lane; j < p.lanes; j += 32) store_shared(floats + j + j / 32, 1.f);
    __syncwarp();
  }
}

}  // namespace
}  // namespace fastdw::cuda

// what: 0 global, 1 shared, 2 wide, 3 matrix, 4 uneven.
extern "C" __attribute__((visibility("default"))) const char* fastdw_counted_run(
    int what, const float* in, float* out, int stride, int lanes, int visits, unsigned blocks) {
  using namespace fastdw::cuda;
  void (*const kernels[])(Params) = {global_kernel, shared_kernel, wide_kernel, matrix_kernel,
                                   uneven_kernel};
  const auto launch = make_launch("counted", kernels[what], dim3(blocks), 32, 32 << 10,
                                  Params{in, out, stride, lanes, visits});
  const cudaError_t error = run(launch, nullptr);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
