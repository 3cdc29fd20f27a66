#include "csrc/cuda/packed_weights.h"

#include "csrc/arena_placement.h"

namespace fastdw::cuda {
namespace {

class PartCursor {
 public:
  PartCursor(const uint8_t* packed, int64_t offset) : packed_(packed), offset_(offset) {}

  ConvWeights take(int64_t elements, int64_t channels_out, DType dtype, int64_t bias_bytes) {
    const void* weight = part(checked_product("packed", {elements, element_bytes(dtype)}));
    return {weight, part(checked_product("packed", {channels_out, bias_bytes}))};
  }

  int64_t end() const { return offset_; }

 private:
  const void* part(int64_t bytes) {
    const uint8_t* begin = packed_ + offset_;
    offset_ += round_up(bytes, kBlobAlignment);
    return begin;
  }

  const uint8_t* packed_;
  int64_t offset_;
};

}  // namespace

StepWeights find_step_weights(const ProgramStep& step, DType dtype, const uint8_t* packed,
                              int64_t available) {
  const BlobShape& shape = step.shape;
  const int64_t taps = checked_product("packed", {shape.kernel_h, shape.kernel_w});
  constexpr int64_t fp32_bytes = 4;
  PartCursor cursor(packed, step.weights_offset);
  StepWeights weights;
  const auto dense = [&](int64_t channels_out, int64_t terms, int64_t bias_bytes) {
    return cursor.take(checked_product("packed", {channels_out, terms}), channels_out, dtype,
                       bias_bytes);
  };
  switch (step.kind) {
    case StepKind::stem_conv:
      weights.pointwise = dense(shape.channels_out,
                                checked_product("packed", {shape.channels_in, taps}), fp32_bytes);
      break;
    case StepKind::depthwise_conv:
      weights.depthwise = dense(shape.channels_out, taps, fp32_bytes);
      break;
    case StepKind::pointwise_conv:
      weights.pointwise = dense(shape.channels_out, shape.channels_in, fp32_bytes);
      break;
    case StepKind::block:
      if (shape.has_expand)
        weights.expand = dense(shape.channels_hidden, shape.channels_in, fp32_bytes);
      weights.depthwise = dense(shape.channels_hidden, taps, fp32_bytes);
      weights.pointwise = dense(shape.channels_out, shape.channels_hidden, fp32_bytes);
      break;
    case StepKind::linear:
      weights.pointwise = dense(shape.channels_out, shape.channels_in, element_bytes(dtype));
      break;
    case StepKind::global_pool: return weights;
    case StepKind::dense_conv:
    case StepKind::resize:
    case StepKind::max_pool:
    case StepKind::concat: fail(step.where, ": only the CPU runs this step");
  }
  FASTDW_CHECK(cursor.end() <= available, step.where, ": packed: expected ", cursor.end(),
               " bytes, got ", available);
  return weights;
}

}  // namespace fastdw::cuda
