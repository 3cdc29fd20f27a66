// A whole network as one launch of a CUDA graph.
#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "csrc/cuda/device.h"
#include "csrc/cuda/network_graph.h"
#include "csrc/cuda/network_launches.h"
#include "csrc/cuda/operands.h"
#include "csrc/cuda/ops.h"

namespace fastdw::cuda {
namespace {

constexpr size_t kCachedNetworks = 32;

struct NetworkKey {
  std::shared_ptr<const Program> program;
  NetworkShape shape;
  int64_t packed_bytes;
  int32_t device;
  cudaStream_t stream;

  bool operator==(const NetworkKey& other) const {
    const auto parts = [](const NetworkKey& key) {
      const NetworkShape& shape = key.shape;
      return std::tuple(key.program, shape.batch, shape.height, shape.width, shape.dtype,
                        shape.channels_last, shape.tf32, shape.wishes.bits(), key.packed_bytes,
                        key.device, key.stream);
    };
    return parts(*this) == parts(other);
  }
};

// One program, shape and stream: its graph and the counters that the graph's kernels leave zeroed.
// The arena is torch's memory, taken for each call, so that torch may use it for other things in
// between; as a rule it lies where it lay before, and no node need be changed.
class CachedNetwork {
 public:
  explicit CachedNetwork(NetworkKey new_key)
      : key(std::move(new_key)),
        launches(*key.program, key.shape, planned_for(device_of(key.device), key.shape.wishes),
                 key.packed_bytes) {}

  void launch(NetworkMemory memory, const Tensor& images) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!counters_) counters_ = row_of_bytes(images, kCounterBytes, kCounterBytes, key.stream);
    memory.counters = static_cast<unsigned*>(counters_->mutable_data_ptr());
    graph_.launch(memory, key.stream);
  }

  const NetworkKey key;
  const NetworkLaunches launches;

 private:
  OptionalTensor counters_;
  NetworkGraph graph_{launches};
  std::mutex mutex_;  // over update and launch
};

std::shared_ptr<CachedNetwork> find_network(NetworkKey key) {
  static std::mutex mutex;
  static auto* networks = new std::list<std::shared_ptr<CachedNetwork>>;  // the latest used first;
  // never destroyed: at exit the driver may be gone before it
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(networks->begin(), networks->end(),
                                  [&](const auto& network) { return network->key == key; });
  if (found != networks->end()) {
    networks->splice(networks->begin(), *networks, found);
    return networks->front();
  }
  networks->push_front(std::make_shared<CachedNetwork>(std::move(key)));
  if (networks->size() > kCachedNetworks) networks->pop_back();
  return networks->front();
}

DType target_of(const Program& program) {
  if (program.target == "cuda_fp32") return DType::fp32;
  if (program.target == "cuda_fp16") return DType::fp16;
  if (program.target == "cuda_bf16") return DType::bf16;
  fail("program: the weights lie as ", program.target, " reads them, x is on CUDA");
}

void check_packed(const Tensor& packed, const Tensor& x) {
  check_on_device("packed", packed, x);
  FASTDW_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 &&
                   packed.is_contiguous() && packed.numel() >= kPlanHeaderBytes,
               "packed: expected one contiguous row of bytes with a header, got ",
               dtype_name(packed.scalar_type()), " ", shape_of(packed));
}

Tensor to_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

ScalarType scalar_type_of(DType dtype) {
  if (dtype == DType::fp16) return ScalarType::Half;
  return dtype == DType::bf16 ? ScalarType::BFloat16 : ScalarType::Float;
}

std::vector<Tensor> make_outputs(const NetworkLaunches& network, const Tensor& images) {
  std::vector<Tensor> outputs;
  for (const int index : network.outputs()) {
    const auto& value = network.value(index);
    const int64_t batch = images.size(0);
    outputs.push_back(
        value.is_vector
            ? empty_like_device(images, {batch, value.channels}, false)
            : empty_like_device(images, {batch, value.channels, value.height, value.width}, true));
  }
  return outputs;
}

// While somebody else captures the stream, a graph of ours cannot be launched on it: the kernels
// are, with memory of this call alone, as the captured graph will run them whenever it likes.
void launch_step_by_step(const NetworkLaunches& network, NetworkMemory memory,
                         const Tensor& images, cudaStream_t stream) {
  const Tensor counters = row_of_bytes(images, kCounterBytes, kCounterBytes, stream);
  memory.counters = static_cast<unsigned*>(counters.mutable_data_ptr());
  for (int step = 0; step < network.steps(); ++step)
    run_launches(network.launches(step, memory), stream);
}

bool is_being_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

std::vector<Tensor> planned_network(const Tensor& x, const Tensor& packed,
                                    const std::string& text) {
  check_images("x", x, false);
  check_packed(packed, x);
  std::shared_ptr<const Program> program = find_program(text);
  const int64_t channels = program->values[kNetworkInput].channels;
  FASTDW_CHECK(x.size(1) == channels, "x: expected ", channels, " channels, got ", shape_of(x));
  const DType dtype = target_of(*program);
  const DeviceScope scope(x);

  const bool channels_last =
      NetworkLaunches::needs_channels_last(*program) || suggests_channels_last(x);
  const Tensor typed = to_dtype(x, scalar_type_of(dtype));
  const Tensor images = channels_last ? interleaved(typed) : planes(typed);
  const Tensor weights = aligned(packed);
  const bool tf32 = dtype == DType::fp32 && allow_tf32();
  const NetworkShape shape{x.size(0),     x.size(2), x.size(3),          dtype,
                           channels_last, tf32,      wished()};
  const auto network =
      find_network({std::move(program), shape, weights.numel(), scope.index(), scope.stream()});

  std::vector<Tensor> outputs = make_outputs(network->launches, images);
  if (x.size(0) > 0) {
    const Tensor arena = torch::stable::empty({network->launches.arena_bytes()}, ScalarType::Byte,
                                              std::nullopt, images.device());
    NetworkMemory memory{images.const_data_ptr(),
                         static_cast<uint8_t*>(arena.mutable_data_ptr()),
                         nullptr,
                         static_cast<const uint8_t*>(weights.const_data_ptr()),
                         {}};
    for (const Tensor& output : outputs) memory.outputs.push_back(output.mutable_data_ptr());
    if (is_being_captured(scope.stream())) {
      launch_step_by_step(network->launches, std::move(memory), images, scope.stream());
    } else {
      network->launch(std::move(memory), images);
    }
  }
  for (Tensor& output : outputs) output = to_dtype(output, x.scalar_type());
  return outputs;
}

}  // namespace fastdw::cuda
