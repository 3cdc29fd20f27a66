// A program made ready for one batch, image size and dtype: the launches of every step, as a
// function of where the tensors lie.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cuda/device.h"
#include "csrc/cuda/packed_weights.h"
#include "csrc/network_program.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/params.h"

namespace fastdw::cuda {

// What a call brings.
struct NetworkMemory {
  const void* x;
  uint8_t* arena;      // arena_bytes
  unsigned* counters;  // kCounterBytes, zeroed before the first call
  const uint8_t* packed;
  std::vector<void*> outputs;
};

struct NetworkShape {
  int64_t batch, height, width;
  DType dtype;
  bool channels_last;  // of x
  bool tf32;
  Wishes wishes;
};

class NetworkLaunches {
 public:
  struct Value {
    int64_t channels, height, width;
    bool is_vector;
    int64_t offset_bytes = 0;    // in the arena
    int output_index = kNoValue;  // or that output
  };

  NetworkLaunches(Program program, const NetworkShape& shape, const Device& device,
                  int64_t packed_bytes);

  int steps() const { return static_cast<int>(steps_.size()); }
  LaunchList launches(int step, const NetworkMemory& memory) const;

  bool reads_input(int step) const;
  bool writes_output(int step) const;
  bool uses_arena(int step) const;

  const std::vector<int>& outputs() const { return program_.outputs; }
  const Value& value(int index) const { return values_[index]; }
  int64_t arena_bytes() const { return arena_bytes_; }

  // Whether x must be NHWC: a step other than a stem reads it.
  static bool needs_channels_last(const Program& program);

 private:
  struct Step {
    ProgramStep step;
    bool pool = false;  // the 1x1 convolution also averages, or the linear layer does first
    Window window{};
    bool has_scratch = false;
  };

  void add_steps();
  void set_size(Step& step);
  void place_values();
  void place_scratch();
  int readers(int value) const;
  const void* read(int value, const NetworkMemory& memory) const;
  void* written(int value, const NetworkMemory& memory) const;
  Epilogue epilogue(const ConvWeights& weights, Activation activation) const;

  LaunchList stem_conv(const Step&, const StepWeights&, const NetworkMemory&) const;
  LaunchList depthwise_conv(const Step&, const StepWeights&, const NetworkMemory&) const;
  LaunchList pointwise_conv(const Step&, const StepWeights&, const NetworkMemory&) const;
  LaunchList block(const Step&, const StepWeights&, const NetworkMemory&) const;
  LaunchList head(const Step&, const StepWeights&, const NetworkMemory&) const;

  Program program_;
  NetworkShape shape_;
  Device device_;
  int64_t packed_bytes_;
  std::vector<Value> values_;
  std::vector<Step> steps_;
  int64_t arena_bytes_ = 0, scratch_offset_ = 0;
};

}  // namespace fastdw::cuda
