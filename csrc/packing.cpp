#include "csrc/packing.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/packing.h"

namespace fastdw {
namespace {

constexpr uint32_t kMagic = 0x31574446;  // "FDW1"
constexpr uint32_t kLayoutVersion = 1;
constexpr uint32_t kAnyIsa = 0;

struct BlobHeader {
  uint32_t magic, layout_version, kind, isa;
  int32_t channels_in, channels_hidden, channels_out, kernel_h, kernel_w, has_expand;
  int32_t reserved[6];
};
static_assert(sizeof(BlobHeader) == kBlobAlignment, "the header fills one cache line");

const char* kind_name(BlobKind kind) {
  switch (kind) {
    case BlobKind::depthwise_conv: return "depthwise_conv";
    case BlobKind::pointwise_conv: return "pointwise_conv";
    case BlobKind::stem_conv: return "stem_conv";
    case BlobKind::separable_block: return "separable_block";
    case BlobKind::inverted_residual: return "inverted_residual";
    case BlobKind::classifier_head: return "classifier_head";
  }
  return "an unknown op";
}

BlobHeader header_of(BlobKind kind, const BlobShape& shape) {
  const auto narrow = [](int64_t size) {
    FASTDW_CHECK(size >= 0 && size <= std::numeric_limits<int32_t>::max(), "weight: a size of ",
                 size, " is more than a packed blob can hold");
    return static_cast<int32_t>(size);
  };
  BlobHeader header{};
  header.magic = kMagic;
  header.layout_version = kLayoutVersion;
  header.kind = static_cast<uint32_t>(kind);
  header.isa = kAnyIsa;
  header.channels_in = narrow(shape.channels_in);
  header.channels_hidden = narrow(shape.channels_hidden);
  header.channels_out = narrow(shape.channels_out);
  header.kernel_h = narrow(shape.kernel_h);
  header.kernel_w = narrow(shape.kernel_w);
  header.has_expand = shape.has_expand;
  return header;
}

std::string dims_text(const BlobHeader& header) {
  std::ostringstream text;
  text << kind_name(static_cast<BlobKind>(header.kind)) << " (channels_in " << header.channels_in
       << ", hidden " << header.channels_hidden << ", channels_out " << header.channels_out
       << ", kernel " << header.kernel_h << 'x' << header.kernel_w << ", expand "
       << header.has_expand << ')';
  return text.str();
}

// Walks the data of a blob: every part is panels (or taps) followed by its padded bias. Without
// data it only counts.
class BlobCursor {
 public:
  explicit BlobCursor(const float* data) : data_(data) {}

  template <class Weights>
  Weights take(int64_t channels_out, int64_t terms) {
    const int64_t padded = channel_blocks(channels_out) * kChannelBlock;
    const int64_t bias = floats_ + checked_product("packed", {padded, terms});
    Weights weights{};
    if (data_) weights = Weights{data_ + floats_, data_ + bias};
    floats_ = bias + padded;
    return weights;
  }

  int64_t floats() const { return floats_; }

 private:
  const float* data_;
  int64_t floats_ = 0;
};

BlobWeights find_weights(BlobKind kind, const BlobShape& shape, BlobCursor& cursor) {
  const int64_t taps = checked_product("packed", {shape.kernel_h, shape.kernel_w});
  BlobWeights weights;
  switch (kind) {
    case BlobKind::depthwise_conv:
      weights.depthwise = cursor.take<DepthwiseWeights>(shape.channels_out, taps);
      break;
    case BlobKind::pointwise_conv:
    case BlobKind::classifier_head:
      weights.pointwise = cursor.take<PointwiseWeights>(shape.channels_out, shape.channels_in);
      break;
    case BlobKind::stem_conv:
      weights.pointwise = cursor.take<PointwiseWeights>(
          shape.channels_out, checked_product("packed", {shape.channels_in, taps}));
      break;
    case BlobKind::separable_block:
    case BlobKind::inverted_residual:
      if (shape.has_expand)
        weights.expand = cursor.take<PointwiseWeights>(shape.channels_hidden, shape.channels_in);
      weights.depthwise = cursor.take<DepthwiseWeights>(shape.channels_hidden, taps);
      weights.pointwise = cursor.take<PointwiseWeights>(shape.channels_out, shape.channels_hidden);
      break;
  }
  return weights;
}

Tensor contiguous_float(const Tensor& tensor) {
  const Tensor converted = tensor.scalar_type() == ScalarType::Float
                               ? tensor
                               : torch::stable::to(tensor, ScalarType::Float);
  return torch::stable::contiguous(converted);
}

OptionalTensor contiguous_float(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(contiguous_float(*tensor)) : std::nullopt;
}

const float* pointer(const OptionalTensor& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

// A blob being filled: created with its header, then one store() per part.
class BlobWriter {
 public:
  BlobWriter(BlobKind kind, const BlobShape& shape)
      : blob_(torch::stable::empty({blob_bytes(kind, shape)}, ScalarType::Byte)) {
    auto* bytes = static_cast<uint8_t*>(blob_.mutable_data_ptr());
    const BlobHeader header = header_of(kind, shape);
    std::memcpy(bytes, &header, sizeof header);
    weights_ = read_blob(kind, shape, bytes, blob_.numel());
  }

  const BlobWeights& weights() const { return weights_; }

  void store(const float* panels, const float* packed_bias, const Tensor& weight,
             const OptionalTensor& scale, const OptionalTensor& bias) {
    const Tensor source = contiguous_float(weight);
    const OptionalTensor scale_source = contiguous_float(scale),
                         bias_source = contiguous_float(bias);
    const int64_t channels_out = source.size(0), terms = source.numel() / channels_out;
    const int64_t grain = std::max<int64_t>(1, kElementsPerThread / (terms * kChannelBlock));
    torch::stable::parallel_for(
        0, channel_blocks(channels_out), grain, [&](int64_t begin, int64_t end) {
          pack_panels(static_cast<const float*>(source.const_data_ptr()), pointer(scale_source),
                      channels_out, terms, begin, end, const_cast<float*>(panels));
        });
    pack_bias(pointer(bias_source), channels_out, const_cast<float*>(packed_bias));
  }

  Tensor finish() { return std::move(blob_); }

 private:
  static constexpr int64_t kElementsPerThread = 1 << 16;
  Tensor blob_;
  BlobWeights weights_;  // points into blob_, which is this writer's own until finish()
};

void check_scale_bias(const char* scale_name, const OptionalTensor& scale, const char* bias_name,
                      const OptionalTensor& bias, int64_t channels) {
  check_per_channel(scale_name, scale, channels);
  check_per_channel(bias_name, bias, channels);
}

}  // namespace

int64_t blob_bytes(BlobKind kind, const BlobShape& shape) {
  BlobCursor cursor(nullptr);
  find_weights(kind, shape, cursor);
  return kBlobAlignment + checked_product("packed", {cursor.floats(), sizeof(float)});
}

BlobWeights read_blob(BlobKind kind, const BlobShape& shape, const uint8_t* blob,
                      int64_t available) {
  BlobHeader header;
  FASTDW_CHECK(available >= kBlobAlignment, "packed: expected a header of 64 bytes, got ",
               available);
  std::memcpy(&header, blob, sizeof header);
  FASTDW_CHECK(
      header.magic == kMagic && header.layout_version == kLayoutVersion && header.isa == kAnyIsa,
      "packed: not a fastdw blob of layout version ", kLayoutVersion);
  const BlobHeader wanted = header_of(kind, shape);
  FASTDW_CHECK(std::memcmp(&header, &wanted, sizeof header) == 0, "packed: expected ",
               dims_text(wanted), ", got ", dims_text(header));
  const int64_t bytes = blob_bytes(kind, shape);
  FASTDW_CHECK(available >= bytes, "packed: expected ", bytes, " bytes, got ", available,
               ": truncated");
  BlobCursor cursor(reinterpret_cast<const float*>(blob + kBlobAlignment));
  return find_weights(kind, shape, cursor);
}

Tensor readable_bytes(const Tensor& packed) {
  FASTDW_CHECK(packed.is_cpu(), "packed: expected a CPU tensor");
  FASTDW_CHECK(
      packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(),
      "packed: expected one contiguous row of bytes, got ", dtype_name(packed.scalar_type()), " ",
      shape_of(packed));
  const auto address = reinterpret_cast<uintptr_t>(packed.const_data_ptr());
  return address % alignof(float) ? torch::stable::clone(packed) : packed;
}

BlobWeights read_blob(BlobKind kind, const BlobShape& shape, const Tensor& packed) {
  return read_blob(kind, shape, static_cast<const uint8_t*>(packed.const_data_ptr()),
                   packed.numel());
}

PackedBlock packed_block(const Tensor& packed) {
  const Tensor blob = readable_bytes(packed);
  BlobHeader header;
  FASTDW_CHECK(blob.numel() >= kBlobAlignment, "packed: expected a header of 64 bytes, got ",
               blob.numel());
  std::memcpy(&header, blob.const_data_ptr(), sizeof header);
  FASTDW_CHECK(header.channels_hidden > 0, "packed: not a fastdw blob of an inverted_residual");
  return {header.channels_hidden, header.has_expand != 0};
}

Tensor pack_depthwise_conv(const Tensor& weight, const OptionalTensor& scale,
                           const OptionalTensor& bias) {
  check_depthwise_weight("weight", weight);
  check_scale_bias("scale", scale, "bias", bias, weight.size(0));
  BlobShape shape;
  shape.channels_out = weight.size(0);
  shape.kernel_h = weight.size(2);
  shape.kernel_w = weight.size(3);
  BlobWriter writer(BlobKind::depthwise_conv, shape);
  const DepthwiseWeights& depthwise = writer.weights().depthwise;
  writer.store(depthwise.taps, depthwise.bias, weight, scale, bias);
  return writer.finish();
}

Tensor pack_pointwise_conv(const Tensor& weight, const OptionalTensor& scale,
                           const OptionalTensor& bias) {
  check_pointwise_weight("weight", weight);
  check_scale_bias("scale", scale, "bias", bias, weight.size(0));
  BlobShape shape;
  shape.channels_in = weight.size(1);
  shape.channels_out = weight.size(0);
  BlobWriter writer(BlobKind::pointwise_conv, shape);
  const PointwiseWeights& pointwise = writer.weights().pointwise;
  writer.store(pointwise.panels, pointwise.bias, weight, scale, bias);
  return writer.finish();
}

Tensor pack_stem_conv(const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias) {
  check_dense_weight("weight", weight);
  check_scale_bias("scale", scale, "bias", bias, weight.size(0));
  BlobShape shape;
  shape.channels_in = weight.size(1);
  shape.channels_out = weight.size(0);
  shape.kernel_h = weight.size(2);
  shape.kernel_w = weight.size(3);
  BlobWriter writer(BlobKind::stem_conv, shape);
  const PointwiseWeights& pointwise = writer.weights().pointwise;
  writer.store(pointwise.panels, pointwise.bias, weight, scale, bias);
  return writer.finish();
}

Tensor pack_separable_block(const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                            const OptionalTensor& depthwise_bias, const Tensor& pointwise_weight,
                            const OptionalTensor& pointwise_scale,
                            const OptionalTensor& pointwise_bias) {
  check_depthwise_weight("depthwise_weight", depthwise_weight);
  check_pointwise_weight("pointwise_weight", pointwise_weight);
  BlobShape shape;
  shape.channels_in = shape.channels_hidden = depthwise_weight.size(0);
  shape.channels_out = pointwise_weight.size(0);
  shape.kernel_h = depthwise_weight.size(2);
  shape.kernel_w = depthwise_weight.size(3);
  FASTDW_CHECK(pointwise_weight.size(1) == shape.channels_hidden, "pointwise_weight: expected [",
               shape.channels_out, ", ", shape.channels_hidden, ", 1, 1], got ",
               shape_of(pointwise_weight));
  check_scale_bias("depthwise_scale", depthwise_scale, "depthwise_bias", depthwise_bias,
                   shape.channels_hidden);
  check_scale_bias("pointwise_scale", pointwise_scale, "pointwise_bias", pointwise_bias,
                   shape.channels_out);
  BlobWriter writer(BlobKind::separable_block, shape);
  const BlobWeights& parts = writer.weights();
  writer.store(parts.depthwise.taps, parts.depthwise.bias, depthwise_weight, depthwise_scale,
               depthwise_bias);
  writer.store(parts.pointwise.panels, parts.pointwise.bias, pointwise_weight, pointwise_scale,
               pointwise_bias);
  return writer.finish();
}

Tensor pack_inverted_residual(const OptionalTensor& expand_weight,
                              const OptionalTensor& expand_scale, const OptionalTensor& expand_bias,
                              const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                              const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                              const OptionalTensor& project_scale,
                              const OptionalTensor& project_bias) {
  check_depthwise_weight("depthwise_weight", depthwise_weight);
  check_pointwise_weight("project_weight", project_weight);
  BlobShape shape;
  shape.channels_hidden = shape.channels_in = depthwise_weight.size(0);
  shape.channels_out = project_weight.size(0);
  shape.kernel_h = depthwise_weight.size(2);
  shape.kernel_w = depthwise_weight.size(3);
  shape.has_expand = expand_weight.has_value();
  FASTDW_CHECK(project_weight.size(1) == shape.channels_hidden, "project_weight: expected [",
               shape.channels_out, ", ", shape.channels_hidden, ", 1, 1], got ",
               shape_of(project_weight));
  check_scale_bias("depthwise_scale", depthwise_scale, "depthwise_bias", depthwise_bias,
                   shape.channels_hidden);
  check_scale_bias("project_scale", project_scale, "project_bias", project_bias,
                   shape.channels_out);
  if (expand_weight) {
    check_pointwise_weight("expand_weight", *expand_weight);
    shape.channels_in = expand_weight->size(1);
    FASTDW_CHECK(expand_weight->size(0) == shape.channels_hidden, "expand_weight: expected [",
                 shape.channels_hidden, ", ", shape.channels_in, ", 1, 1], got ",
                 shape_of(*expand_weight));
    check_scale_bias("expand_scale", expand_scale, "expand_bias", expand_bias,
                     shape.channels_hidden);
  } else {
    FASTDW_CHECK(!expand_scale && !expand_bias,
                 "expand_scale, expand_bias: given without expand_weight");
  }
  BlobWriter writer(BlobKind::inverted_residual, shape);
  const BlobWeights& parts = writer.weights();
  if (expand_weight)
    writer.store(parts.expand.panels, parts.expand.bias, *expand_weight, expand_scale, expand_bias);
  writer.store(parts.depthwise.taps, parts.depthwise.bias, depthwise_weight, depthwise_scale,
               depthwise_bias);
  writer.store(parts.pointwise.panels, parts.pointwise.bias, project_weight, project_scale,
               project_bias);
  return writer.finish();
}

Tensor pack_classifier_head(const Tensor& weight, const OptionalTensor& bias) {
  check_floating("weight", weight, true);
  FASTDW_CHECK(weight.dim() == 2 && weight.numel() > 0,
               "weight: expected [channels_out, channels_in], got ", shape_of(weight));
  check_per_channel("bias", bias, weight.size(0));
  BlobShape shape;
  shape.channels_in = weight.size(1);
  shape.channels_out = weight.size(0);
  BlobWriter writer(BlobKind::classifier_head, shape);
  const PointwiseWeights& pointwise = writer.weights().pointwise;
  writer.store(pointwise.panels, pointwise.bias, weight, std::nullopt, bias);
  return writer.finish();
}

}  // namespace fastdw
