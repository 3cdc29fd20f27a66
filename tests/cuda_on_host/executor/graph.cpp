// CUDA graphs: nodes are kept as data and executed when the graph is launched, in any order that
// their dependencies allow: which, the order of the threads decides.
#include <cstring>
#include <memory>
#include <vector>

#include "tests/cuda_on_host/executor/block.h"
#include "tests/cuda_on_host/executor/runtime.h"

using fastdw::host::note_error;

std::atomic<int64_t> fastdw::host::graphs_built{0}, fastdw::host::graph_launches{0},
    fastdw::host::early_launches{0};

struct CUgraphNode_st {
  std::vector<size_t> after;  // places in the graph
  size_t place;
  const void* kernel;  // null: a memset
  dim3 grid, block;
  size_t shared_bytes;
  std::vector<uint64_t> params;  // a copy, aligned
  cudaMemsetParams memset;
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

struct CUgraphExec_st {
  std::vector<CUgraphNode_st> nodes;
  const CUgraph_st* graph;  // whose nodes name those of the executable
};

namespace {

bool set_kernel(CUgraphNode_st& node, const cudaKernelNodeParams& params) {
  const size_t bytes = fastdw::host::params_bytes_of(params.func);
  if (bytes == 0 || params.kernelParams == nullptr) return false;
  node.kernel = params.func;
  node.grid = params.gridDim;
  node.block = params.blockDim;
  node.shared_bytes = params.sharedMemBytes;
  node.params.resize((bytes + 7) / 8);
  std::memcpy(node.params.data(), params.kernelParams[0], bytes);
  return true;
}

CUgraphNode_st* add_node(cudaGraph_t graph, const cudaGraphNode_t* after, size_t after_count) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->place = graph->nodes.size();
  node->kernel = nullptr;
  for (size_t i = 0; i < after_count; ++i) {
    if (after[i]->place >= graph->nodes.size() || graph->nodes[after[i]->place].get() != after[i])
      return nullptr;
    node->after.push_back(after[i]->place);
  }
  graph->nodes.push_back(std::move(node));
  return graph->nodes.back().get();
}

cudaError_t execute_memset(const cudaMemsetParams& params) {
  char* row = static_cast<char*>(params.dst);
  for (size_t i = 0; i < params.height; ++i, row += params.pitch)
    for (size_t j = 0; j < params.width; ++j)
      std::memcpy(row + j * params.elementSize, &params.value, params.elementSize);
  return cudaSuccess;
}

cudaError_t execute_node(const CUgraphNode_st& node) {
  if (node.kernel == nullptr) return execute_memset(node.memset);
  return fastdw::host::launch(node.kernel, node.grid, node.block, node.params.data(),
                              node.shared_bytes);
}

bool is_ready(const CUgraphNode_st& node, const std::vector<bool>& done) {
  for (const size_t place : node.after)
    if (!done[place]) return false;
  return !done[node.place];
}

}  // namespace

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new CUgraph_st;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                   const cudaGraphNode_t* after, size_t after_count,
                                   const cudaKernelNodeParams* params) {
  CUgraphNode_st checked;
  if (!set_kernel(checked, *params)) return note_error(cudaErrorInvalidDeviceFunction);
  *node = add_node(graph, after, after_count);
  if (*node == nullptr) return note_error(cudaErrorInvalidValue, "a node of another graph");
  set_kernel(**node, *params);
  return cudaSuccess;
}

cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                   const cudaGraphNode_t* after, size_t after_count,
                                   const cudaMemsetParams* params) {
  const unsigned size = params->elementSize;
  if (size != 1 && size != 2 && size != 4) return note_error(cudaErrorInvalidValue);
  *node = add_node(graph, after, after_count);
  if (*node == nullptr) return note_error(cudaErrorInvalidValue, "a node of another graph");
  (*node)->memset = *params;
  return cudaSuccess;
}

cudaError_t cudaGraphAddDependencies(cudaGraph_t graph, const cudaGraphNode_t* from,
                                     const cudaGraphNode_t* to, const cudaGraphEdgeData* edges,
                                     size_t count) {
  const auto is_of = [&](const CUgraphNode_st* node) {
    return node->place < graph->nodes.size() && graph->nodes[node->place].get() == node;
  };
  for (size_t i = 0; i < count; ++i) {
    if (!is_of(from[i]) || !is_of(to[i]))
      return note_error(cudaErrorInvalidValue, "a node of another graph");
    to[i]->after.push_back(from[i]->place);
    fastdw::host::early_launches += edges[i].type == cudaGraphDependencyTypeProgrammatic;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  auto made = std::make_unique<CUgraphExec_st>();
  for (const auto& node : graph->nodes) made->nodes.push_back(*node);
  made->graph = graph;
  *executable = made.release();
  ++fastdw::host::graphs_built;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t executable, cudaGraphNode_t node,
                                             const cudaKernelNodeParams* params) {
  const auto& nodes = executable->graph->nodes;
  if (node->place >= nodes.size() || nodes[node->place].get() != node)
    return note_error(cudaErrorInvalidValue, "a node of another graph");
  CUgraphNode_st& own = executable->nodes[node->place];
  if (own.kernel == nullptr || !set_kernel(own, *params)) return note_error(cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  if (fastdw::host::streams_are_capturing) return note_error(cudaErrorStreamCaptureUnsupported);
  const std::vector<CUgraphNode_st>& nodes = executable->nodes;
  const bool from_the_end = fastdw::host::thread_order != fastdw::host::Order::forward;
  std::vector<bool> done(nodes.size());
  for (size_t count = 0; count < nodes.size(); ++count) {
    size_t chosen = nodes.size();
    for (size_t i = 0; i < nodes.size(); ++i)
      if (is_ready(nodes[i], done) && (chosen == nodes.size() || from_the_end)) chosen = i;
    const cudaError_t error = execute_node(nodes[chosen]);
    if (error != cudaSuccess) return error;
    done[chosen] = true;
  }
  ++fastdw::host::graph_launches;
  return cudaSuccess;
}
