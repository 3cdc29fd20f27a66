#include "csrc/cuda/network_graph.h"

#include "csrc/cuda/device.h"

namespace fastdw::cuda {
namespace {

// A node's parameters; they point into the launch.
struct NodeParams {
  void* arguments[1];
  cudaKernelNodeParams params{};

  explicit NodeParams(const KernelLaunch& launch)
      : arguments{const_cast<unsigned char*>(launch.params)} {
    params.func = const_cast<void*>(launch.kernel);
    params.gridDim = launch.grid;
    params.blockDim = launch.block;
    params.sharedMemBytes = static_cast<unsigned>(launch.shared_bytes);
    params.kernelParams = arguments;
  }
};

// early: the second may begin before the first has ended, whose end its code waits for.
cudaError_t add_dependency(cudaGraph_t graph, cudaGraphNode_t first, cudaGraphNode_t second,
                           bool early) {
  cudaGraphEdgeData edge{};
  if (early) {
    edge.type = cudaGraphDependencyTypeProgrammatic;
    edge.from_port = cudaGraphKernelNodePortProgrammatic;
  }
#if CUDART_VERSION >= 13000
  return cudaGraphAddDependencies(graph, &first, &second, &edge, 1);
#else
  return cudaGraphAddDependencies_v2(graph, &first, &second, &edge, 1);
#endif
}

}  // namespace

NetworkGraph::~NetworkGraph() { release(); }

// The runtime lets a graph that is still running finish first.
void NetworkGraph::release() {
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  if (graph_ != nullptr) cudaGraphDestroy(graph_);
  executable_ = nullptr;
  graph_ = nullptr;
  nodes_.clear();
}

void NetworkGraph::launch(const NetworkMemory& memory, cudaStream_t stream) {
  if (executable_ == nullptr || !update(memory)) build(memory);
  check_cuda(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
}

void NetworkGraph::build(const NetworkMemory& memory) {
  release();
  check_cuda(cudaGraphCreate(&graph_, 0), "cudaGraphCreate");
  const bool may_begin_early = !wished().late;
  cudaGraphNode_t last = nullptr;
  for (int step = 0; step < network_.steps(); ++step) {
    const LaunchList list = network_.launches(step, memory);
    std::vector<Node>& nodes = nodes_.emplace_back();
    for (int i = 0; i < list.count; ++i) {
      const KernelLaunch& launch = list.launches[i];
      bool waits = false;
      check_cuda(prepare(launch, waits), launch.name);
      const NodeParams params(launch);
      cudaGraphNode_t node;
      check_cuda(cudaGraphAddKernelNode(&node, graph_, nullptr, 0, &params.params), launch.name);
      if (last != nullptr) {
        const bool early = waits && may_begin_early;
        check_cuda(add_dependency(graph_, last, node, early), launch.name);
      }
      nodes.push_back({node, launch.kernel});
      last = node;
    }
  }
  check_cuda(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate");
  memory_ = memory;
}

// False if the nodes are not the same kernels any more: the graph must be built anew.
bool NetworkGraph::update(const NetworkMemory& memory) {
  for (int step = 0; step < network_.steps(); ++step) {
    if (!has_moved(step, memory)) continue;
    const LaunchList list = network_.launches(step, memory);
    const std::vector<Node>& nodes = nodes_[step];
    if (list.count != static_cast<int>(nodes.size())) return false;
    for (int i = 0; i < list.count; ++i) {
      const KernelLaunch& launch = list.launches[i];
      if (launch.kernel != nodes[i].kernel) return false;
      const NodeParams params(launch);
      check_cuda(cudaGraphExecKernelNodeSetParams(executable_, nodes[i].node, &params.params),
                 launch.name);
    }
  }
  memory_ = memory;
  return true;
}

bool NetworkGraph::has_moved(int step, const NetworkMemory& memory) const {
  if (memory.packed != memory_.packed || memory.counters != memory_.counters) return true;
  if (memory.arena != memory_.arena && network_.uses_arena(step)) return true;
  if (memory.x != memory_.x && network_.reads_input(step)) return true;
  return memory.outputs != memory_.outputs && network_.writes_output(step);
}

}  // namespace fastdw::cuda
