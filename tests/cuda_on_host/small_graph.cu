// A CUDA graph of three nodes, to test the stub of the runtime: out = 0, then out += a, out *= b.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace fastdw::cuda {
namespace {

struct Params {
  float* out;
  float operand;
};

__global__ void add_kernel(const Params p) {
  store_global_if(p.out, load_global_coherent(p.out) + p.operand, true);
}

__global__ void multiply_kernel(const Params p) {
  store_global_if(p.out, load_global_coherent(p.out) * p.operand, true);
}

struct Node {
  Params params;
  void* arguments[1] = {&params};
  cudaKernelNodeParams node{};

  Node(void (*kernel)(Params), float* out, float operand) : params{out, operand} {
    node.func = const_cast<void*>(kernel_address(kernel));
    node.kernelParams = arguments;
  }
  Node(const Node&) = delete;
};

struct Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaGraphNode_t zero = nullptr, add = nullptr, multiply = nullptr;

  ~Graph() {
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }

  // The parameters need not outlive this call.
  cudaError_t build(float* out, float a, float b, bool ordered) {
    const Node add_params(add_kernel, out, a), multiply_params(multiply_kernel, out, b);
    const cudaMemsetParams zeros{out, 0, 0, 4, 1, 1};
    cudaGraphCreate(&graph, 0);
    cudaGraphAddMemsetNode(&zero, graph, nullptr, 0, &zeros);
    cudaGraphAddKernelNode(&add, graph, &zero, 1, &add_params.node);
    const cudaGraphNode_t before = ordered ? add : zero;
    cudaGraphAddKernelNode(&multiply, graph, &before, 1, &multiply_params.node);
    return cudaGraphInstantiate(&executable, graph, 0);
  }

  cudaError_t change_add(float* out, float a) {
    const Node params(add_kernel, out, a);
    return cudaGraphExecKernelNodeSetParams(executable, add, &params.node);
  }
};

}  // namespace
}  // namespace fastdw::cuda

// values: what two launches leave, the second with 10 instead of 1 added; then times 2. Returns the
// first error.
extern "C" __attribute__((visibility("default"))) int fastdw_graph_run(int ordered, float* values) {
  using namespace fastdw::cuda;
  Graph graph;
  float out = 5.f;
  cudaError_t error = graph.build(&out, 1.f, 2.f, ordered != 0);
  if (error == cudaSuccess) error = cudaGraphLaunch(graph.executable, nullptr);
  values[0] = out;
  if (error == cudaSuccess) error = graph.change_add(&out, 10.f);
  if (error == cudaSuccess) error = cudaGraphLaunch(graph.executable, nullptr);
  values[1] = out;
  return error;
}

// What the runtime says to a node of another graph, and to a kernel that nobody has named.
extern "C" __attribute__((visibility("default"))) int fastdw_graph_mistake(int unknown_kernel) {
  using namespace fastdw::cuda;
  Graph one, other;
  float out = 0.f;
  one.build(&out, 1.f, 2.f, true);
  other.build(&out, 1.f, 2.f, true);
  Node params(add_kernel, &out, 1.f);
  if (unknown_kernel != 0) params.node.func = &out;
  return cudaGraphExecKernelNodeSetParams(one.executable, unknown_kernel ? one.add : other.add,
                                          &params.node);
}
