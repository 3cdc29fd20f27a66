// Small kernels, each right and with one mistake, which the executor must name.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.cuh"
#include "tests/cuda_on_host/executor/counters.h"

namespace fastdw::cuda {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kAll = ~0u;

struct Params {
  const float* in;
  float* out;
};

__device__ float* shared_floats() { return reinterpret_cast<float*>(dynamic_shared_memory()); }
__device__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ void give(const Params& p, float value) {
  store_global_if(p.out + thread(), value, true);
}

// Barriers of the block.

template <bool kBug>
__global__ void reads_after_write(const Params p) {
  store_shared(shared_floats() + thread(), 1.f);
  if (!kBug) __syncthreads();
  give(p, load_shared(shared_floats() + kThreads - 1 - thread()));
}

template <bool kBug>
__global__ void writes_after_read(const Params p) {
  float* mine = shared_floats() + thread();
  float* other = shared_floats() + kThreads - 1 - thread();
  store_shared(mine, 1.f);
  __syncthreads();
  const float value = load_shared(other);
  if (!kBug) __syncthreads();
  store_shared(mine, value + 1.f);
  give(p, value);
}

template <bool kBug>
__global__ void writes_twice(const Params p) {
  store_shared(shared_floats() + thread() / (kBug ? 2 : 1), 1.f);
  __syncthreads();
  give(p, load_shared(shared_floats()));
}

template <bool kBug>
__global__ void barrier_in_branch(const Params p) {
  if (!kBug || thread() < 32) __syncthreads();
  give(p, 0.f);
}

template <bool kBug>
__global__ void barriers_of_two_branches(const Params p) {
  if (thread() < 32 || !kBug) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  give(p, 0.f);
}

template <bool kBug>
__global__ void barrier_within_warp(const Params p) {
  if (!kBug || thread() % 2) __syncthreads();
  give(p, __shfl_sync(kAll, 1.f, 0));
}

template <bool kBug>
__global__ void returns_before_barrier(const Params p) {
  if (kBug && thread() == 63) return;
  __syncthreads();
  give(p, 0.f);
}

// Within a warp.

template <bool kBug>
__global__ void reads_in_warp(const Params p) {
  store_shared(shared_floats() + thread(), 1.f);
  if (!kBug) __syncwarp();
  give(p, load_shared(shared_floats() + (thread() ^ 1)));
}

template <bool kBug>
__global__ void shuffle_orders_nothing(const Params p) {
  store_shared(shared_floats() + thread(), 1.f);
  const float value = __shfl_xor_sync(kAll, 1.f, 1);
  if (!kBug) __syncwarp();
  give(p, value + load_shared(shared_floats() + (thread() ^ 1)));
}

template <bool kBug>
__global__ void shuffle_in_branch(const Params p) {
  float value = 1.f;
  if (!kBug || thread() % 32 < 16) value = __shfl_down_sync(kAll, value, 1);
  __syncwarp();
  give(p, value);
}

template <bool kBug>
__global__ void shuffle_from_ended_lane(const Params p) {
  if (kBug && thread() % 32 == 31) return;
  give(p, __shfl_down_sync(kAll, 1.f, 1));
}

template <bool kBug>
__global__ void lane_outside_mask(const Params p) {
  give(p, __shfl_sync(kBug ? 0xffffu : kAll, 1.f, 0));
}

template <bool kBug>
__global__ void product_of_part(const Params p) {
  if (kBug && thread() == 7) return;
  float sums[4] = {};
  const uint32_t a[4] = {};
  mma_16x8x16<__half>(sums, a, 0, 0);
  give(p, sums[0]);
}

template <bool kBug>
__global__ void product_not_rounded(const Params p) {
  float sums[4] = {};
  const uint32_t bits = __float_as_uint(1.f / 3.f);
  const uint32_t part = kBug ? bits : round_to_tf32(bits);
  const uint32_t a[4] = {part, part, part, part};
  mma_16x8x8_tf32(sums, a, part, part);
  give(p, sums[0]);
}

// Places.

template <bool kBug>
__global__ void shared_off_by_one(const Params p) {
  store_shared(shared_floats() + thread() + (kBug ? 1 : 0), 1.f);
  give(p, 0.f);
}

template <bool kBug>
__global__ void shared_before_begin(const Params p) {
  store_shared(shared_floats() + thread() - (kBug ? 1 : 0), 1.f);
  give(p, 0.f);
}

template <bool kBug>
__global__ void shared_unwritten(const Params p) {
  store_shared_if(shared_floats() + thread(), 1.f, !kBug || thread() != 40);
  __syncthreads();
  give(p, load_shared(shared_floats() + thread()));
}

template <bool kBug>
__global__ void shared_unaligned(const Params p) {
  float* first = shared_floats() + (kBug ? 1 : 0);
  if (thread() < 8) store_shared(reinterpret_cast<WidePack<float>*>(first) + thread(), {});
  give(p, 0.f);
}

template <bool kBug>
__global__ void global_off_by_one(const Params p) {
  give(p, load_global(p.in + thread() + (kBug ? 1 : 0)));
}

template <bool kBug>
__global__ void global_store_off_by_one(const Params p) {
  store_global_if(p.out + thread() + (kBug ? 1 : 0), 1.f, true);
}

template <bool kBug>
__global__ void global_unaligned(const Params p) {
  const auto* packs = reinterpret_cast<const WidePack<float>*>(p.in + (kBug ? 1 : 0));
  give(p, load_global_or_zero(packs + thread(), thread() < 8).lane[0]);
}

template <bool kBug>
__global__ void global_named_shared(const Params p) {
  store_shared(shared_floats() + thread(), 1.f);
  give(p, load_global(kBug ? shared_floats() + thread() : p.in + thread()));
}

// Asynchronous copies: of 4 floats by each of the first 16 threads.

__device__ void copy_row(const Params& p, float* to) {
  if (thread() < 16) copy_async(to + 4 * thread(), p.in + 4 * thread(), true);
}

template <bool kBug>
__global__ void copy_not_awaited(const Params p) {
  copy_row(p, shared_floats());
  commit_copies();
  if (!kBug) wait_for_copies<0>();
  __syncthreads();
  const float value = load_shared(shared_floats() + thread());
  wait_for_copies<0>();
  give(p, value);
}

template <bool kBug>
__global__ void copy_not_committed(const Params p) {
  copy_row(p, shared_floats());
  if (!kBug) commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  give(p, load_shared(shared_floats() + thread()));
}

template <bool kBug>
__global__ void copy_of_later_group(const Params p) {
  copy_row(p, shared_floats());
  commit_copies();
  copy_row(p, shared_floats() + 64);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  const float value = load_shared(shared_floats() + thread() + (kBug ? 64 : 0));
  wait_for_copies<0>();
  give(p, value);
}

template <bool kBug>
__global__ void copy_without_barrier(const Params p) {
  copy_row(p, shared_floats());
  commit_copies();
  wait_for_copies<0>();
  if (!kBug) __syncthreads();
  give(p, load_shared(shared_floats() + thread()));
}

template <bool kBug>
__global__ void copy_over_what_others_read(const Params p) {
  copy_row(p, shared_floats());
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  const float value = load_shared(shared_floats() + thread());
  if (!kBug) __syncthreads();
  copy_row(p, shared_floats());
  commit_copies();
  wait_for_copies<0>();
  give(p, value);
}

template <bool kBug>
__global__ void ends_with_copies(const Params p) {
  copy_row(p, shared_floats());
  commit_copies();
  if (!kBug) wait_for_copies<0>();
  give(p, 0.f);
}

template <bool kBug>
__global__ void copy_from_unaligned(const Params p) {
  if (thread() < 8) copy_async(shared_floats() + 4 * thread(), p.in + 4 * thread() + kBug, true);
  commit_copies();
  wait_for_copies<0>();
  give(p, 0.f);
}

template <bool kBug>
__global__ void copy_to_unaligned(const Params p) {
  if (thread() < 8) copy_async(shared_floats() + 4 * thread() + kBug, p.in + 4 * thread(), true);
  commit_copies();
  wait_for_copies<0>();
  give(p, 0.f);
}

// ldmatrix: 16 rows of 16 bytes in 64 floats.

__device__ void load_rows(const Params& p, int first_row, int shift, bool ordered) {
  store_shared(shared_floats() + thread(), 1.f);
  if (ordered) __syncthreads();
  uint32_t parts[4];
  load_matrices(parts, shared_floats() + 4 * (first_row + thread() % 16) + shift);
  give(p, __uint_as_float(parts[0]));
}

template <bool kBug>
__global__ void matrix_unaligned(const Params p) {
  load_rows(p, 0, kBug ? 2 : 0, true);
}

template <bool kBug>
__global__ void matrix_outside(const Params p) {
  load_rows(p, kBug ? 32 : 0, 0, true);
}

template <bool kBug>
__global__ void matrix_without_barrier(const Params p) {
  load_rows(p, 0, 0, !kBug);
}

// On a device it would hang where all that run wait.
template <bool kBug>
__global__ void waits_for_later_block(const Params p) {
  auto* counter = reinterpret_cast<unsigned*>(p.out);
  store_global_if(counter, 0u, thread() == 0);
  if (thread() == 0) arrive(counter);
  if (thread() == 0) wait_for_arrivals(counter, kBug ? 2 : 1);
  __syncthreads();
  give(p, 0.f);
}

// Not seen by any check, only by other results in another order.
template <bool kBug>
__global__ void blocks_in_order(const Params p) {
  const int block = static_cast<int>(blockIdx.x);
  const float before = load_global_or_zero(p.out + block - 1, kBug && block > 0 && thread() == 0);
  store_global_if(p.out + block, before + load_global(p.in + block), thread() == 0);
}

struct Case {
  const char* name;
  void (*right)(Params);
  void (*wrong)(Params);
  unsigned blocks;
};
#define CASE(name) Case{#name, name<false>, name<true>, 1}

const Case cases[] = {
    CASE(reads_after_write),
    CASE(writes_after_read),
    CASE(writes_twice),
    CASE(barrier_in_branch),
    CASE(barriers_of_two_branches),
    CASE(barrier_within_warp),
    CASE(returns_before_barrier),
    CASE(reads_in_warp),
    CASE(shuffle_orders_nothing),
    CASE(shuffle_in_branch),
    CASE(shuffle_from_ended_lane),
    CASE(lane_outside_mask),
    CASE(product_of_part),
    CASE(product_not_rounded),
    CASE(shared_off_by_one),
    CASE(shared_before_begin),
    CASE(shared_unwritten),
    CASE(shared_unaligned),
    CASE(global_off_by_one),
    CASE(global_store_off_by_one),
    CASE(global_unaligned),
    CASE(global_named_shared),
    CASE(copy_not_awaited),
    CASE(copy_not_committed),
    CASE(copy_of_later_group),
    CASE(copy_without_barrier),
    CASE(copy_over_what_others_read),
    CASE(ends_with_copies),
    CASE(copy_from_unaligned),
    CASE(copy_to_unaligned),
    CASE(matrix_unaligned),
    CASE(matrix_outside),
    CASE(matrix_without_barrier),
    CASE(waits_for_later_block),
    Case{"blocks_in_order", blocks_in_order<false>, blocks_in_order<true>, kThreads},
};

// Only copy_of_later_group, whose name says so, needs 128 floats.
size_t shared_bytes_of(const Case& found) {
  const bool two = std::strcmp(found.name, "copy_of_later_group") == 0;
  return (two ? 2 : 1) * kThreads * sizeof(float);
}

}  // namespace
}  // namespace fastdw::cuda

#define FASTDW_PLANTED extern "C" __attribute__((visibility("default")))

// What the runtime says of the launch, empty where nothing is wrong. in and out: 64 floats each.
FASTDW_PLANTED const char* fastdw_planted_run(const char* name, int wrong, const float* in,
                                              float* out) {
  using namespace fastdw::cuda;
  static std::string text;
  text = std::string("no such kernel: ") + name;
  for (const Case& found : cases) {
    if (std::strcmp(found.name, name) != 0) continue;
    const auto launch = make_launch(name, wrong ? found.wrong : found.right, dim3(found.blocks),
                                    kThreads, shared_bytes_of(found), Params{in, out});
    const cudaError_t error = run(launch, nullptr);
    text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  }
  return text.c_str();
}

FASTDW_PLANTED const char* fastdw_planted_names() {
  static std::string text;
  text.clear();
  for (const auto& found : fastdw::cuda::cases) text += found.name + std::string(" ");
  return text.c_str();
}

// An otherwise right kernel with another configuration.
FASTDW_PLANTED const char* fastdw_planted_launch(unsigned blocks_y, unsigned threads,
                                                 uint64_t shared_bytes, float* out) {
  using namespace fastdw::cuda;
  const auto launch = make_launch("launch", product_of_part<false>, dim3(1, blocks_y), threads,
                                  shared_bytes, Params{out, out});
  const cudaError_t error = run(launch, nullptr);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
