// A program made ready for one image size: the kernels' parameters of every step, and where in an
// arena its values lie.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "csrc/network_program.h"
#include "kernels/params.h"

namespace fastdw {

using StepParams = std::variant<StemParams, DepthwiseParams, PointwiseParams, DenseConvParams,
                                InvertedResidualParams, StemBlockParams, GlobalPoolParams,
                                LinearParams, ResizeParams, CopyChannelsParams,
                                MaxPoolParams>;

inline bool has_weights(const StepParams& params) {
  return !std::holds_alternative<GlobalPoolParams>(params) &&
         !std::holds_alternative<ResizeParams>(params) &&
         !std::holds_alternative<CopyChannelsParams>(params) &&
         !std::holds_alternative<MaxPoolParams>(params);
}

// Where a blob of weights lies in the packed buffer.
struct PlanBlob {
  BlobKind kind;
  BlobShape shape;
  int64_t offset;
};

// Parameters of one image; the batch and the pointers are filled in by the call.
struct PlanStep {
  StepParams params;
  int input, output, residual;
  int gate, bias;      // of a pointwise convolution: vectors, one an image, else kNoValue
  int partial_sums;    // of a block that is shared by hidden channels, else kNoValue
  PlanBlob blob;       // where has_weights()
  PlanBlob stem_blob;  // of what stands before the block: a StemBlockParams' stem, or an expansion
  int64_t first_text_step, last_text_step;  // the steps of the program's text, from 0
  double multiply_adds;  // of convolutions and linear layers, per image
  int row_sums = kNoValue;  // of a depthwise convolution whose result is pooled too

  bool has_stem_blob() const {
    const auto* block = std::get_if<InvertedResidualParams>(&params);
    return std::holds_alternative<StemBlockParams>(params) ||
           (block != nullptr && !block->has_project);
  }
};

struct PlanValue {
  enum class Place { input, arena, batch, output };
  Place place;
  int64_t channels, height, width;
  bool is_vector;      // [batch, channels]
  bool is_row_sums = false;  // of the images of a step: row_sums_layout()
  int64_t floats;      // per image
  Layout layout;       // of images; blocked between the steps
  int64_t offset = 0;  // per image; in the arena, or in the part that holds whole batches
  int output_index = kNoValue;
  int whole = kNoValue;         // the map that this one is a part of, in whose memory it lies
  int64_t first_of_whole = 0;  // where, in floats
};

// What the workers do together before they wait for each other: a step, or, where its hidden
// channels are shared, first the shares and then their sum.
struct PlanRound {
  int64_t step;
  bool sums_shares;
};

struct NetworkPlan {
  std::string text;
  int64_t height, width;

  std::vector<PlanValue> values;
  std::vector<PlanStep> image_steps;  // one image does not need another
  std::vector<PlanRound> image_rounds;
  std::vector<PlanStep> batch_steps;  // linear layers that no image's step reads, after all
  std::vector<int> outputs;
  int64_t text_steps;
  int64_t arena_floats = 0;  // per image
  int64_t batch_floats = 0;  // per image
  double multiply_adds = 0;  // per image
  bool reads_planes = true;  // x is read by stems alone, which read NCHW directly
};

// From a bounded cache; parsed and planned on the first use of a text with an image size.
std::shared_ptr<const NetworkPlan> find_network_plan(const std::string& text, int64_t height,
                                                     int64_t width);

}  // namespace fastdw
