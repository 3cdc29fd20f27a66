// A planned network as one CUDA graph: a node per kernel launch, added one by one, in a chain. The
// graph is launched as often as one likes; what moved since the last launch is set in its nodes.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "csrc/cuda/network_launches.h"

namespace fastdw::cuda {

class NetworkGraph {
 public:
  explicit NetworkGraph(const NetworkLaunches& network) : network_(network) {}
  ~NetworkGraph();
  NetworkGraph(const NetworkGraph&) = delete;
  NetworkGraph& operator=(const NetworkGraph&) = delete;

  void launch(const NetworkMemory& memory, cudaStream_t stream);

 private:
  struct Node {
    cudaGraphNode_t node;
    const void* kernel;
  };

  void build(const NetworkMemory& memory);
  bool update(const NetworkMemory& memory);
  void release();
  bool has_moved(int step, const NetworkMemory& memory) const;

  const NetworkLaunches& network_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
  std::vector<std::vector<Node>> nodes_;  // of each step
  NetworkMemory memory_{};                // that the nodes hold
};

}  // namespace fastdw::cuda
