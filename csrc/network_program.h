// The text of a planned network, parsed: which op reads and writes which value. The format is that
// of fastdw/ops/program.py: a line for the network, then a line per step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/packing.h"
#include "csrc/tensor_checks.h"

namespace fastdw {

constexpr int kNetworkInput = 0;  // the index of the value `x`
constexpr int kNoValue = -1;

enum class StepKind {
  stem_conv,
  depthwise_conv,
  pointwise_conv,
  dense_conv,
  block,
  global_pool,
  linear,
  resize,
  concat,
  max_pool,
};

struct ProgramStep {
  StepKind kind;
  std::string where;  // "program: line 3: stem_conv", for messages
  int64_t text_step = 0;  // which step of the text, from 0
  int input = kNoValue, output = kNoValue, residual = kNoValue;
  int gate = kNoValue;  // pointwise_conv: multiplies the input, channel by channel
  int bias = kNoValue;     // of a pointwise convolution: a vector that each image's sums start from
  int like = kNoValue;     // resize: to the size of this value, else by `stride`
  std::vector<int> parts;  // concat: the maps that lie one after the other; input is the first
  // concat: the joined channels, read as [groups][channels / groups], are transposed; of these
  // the step's own begin at first_channel.
  int64_t groups = 1, first_channel = 0;
  ResizeMode resize_mode{};
  BlobKind blob_kind{};
  BlobShape shape;
  int64_t weights_offset = 0;
  IntList stride{1, 1}, padding{0, 0, 0, 0}, dilation{1, 1};  // no padding: SAME
  bool adds_input = false;                                    // blocks
  Activation expand_activation = Activation::none;
  Activation depthwise_activation = Activation::none;
  Activation activation = Activation::none;  // of the last convolution

  // The weights of a dense convolution lie as those of a 1x1 convolution of its K channels.
  BlobShape blob_shape() const {
    BlobShape held = shape;
    if (kind != StepKind::dense_conv) return held;
    held.channels_in = checked_product(where.c_str(), {held.kernel_h, held.kernel_w,
                                                       held.channels_in});
    held.kernel_h = held.kernel_w = 0;
    return held;
  }
};

struct ProgramValue {
  int64_t channels;
  bool is_vector;  // [batch, channels], else images
};

// Steps in the order of the text, a classifier_head on images being two: global_pool and linear.
struct Program {
  std::vector<ProgramValue> values;
  std::vector<ProgramStep> steps;
  std::vector<int> outputs;
  int64_t lines = 0;  // steps as the text counts them
  std::string target = "cpu";  // cpu, cuda_fp32, cuda_fp16 or cuda_bf16: how the weights lie
};

Program parse_program(const std::string& text);

// Whether a step computes more than the CUDA kernels can.
bool is_for_cpu_alone(const ProgramStep& step);

// From a bounded cache; the same text gives the same object as long as somebody holds it.
std::shared_ptr<const Program> find_program(const std::string& text);

}  // namespace fastdw
