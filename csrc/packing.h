// Packed weights: one uint8 blob per op, a 64-byte header and then fp32 data in the layout of
// kernels/params.h. The layout is the same for every instruction set, so nothing is ever repacked.
#pragma once

#include <cstdint>

#include "csrc/tensor_checks.h"
#include "kernels/params.h"

namespace fastdw {

constexpr int64_t kBlobAlignment = 64;  // of offsets and sizes; the base address may be anything

enum class BlobKind : uint32_t {
  depthwise_conv = 1,
  pointwise_conv = 2,
  stem_conv = 3,
  separable_block = 4,
  inverted_residual = 5,
  classifier_head = 6,
};

// What a blob holds; 0 where the kind has no such size.
struct BlobShape {
  int64_t channels_in = 0, channels_hidden = 0, channels_out = 0, kernel_h = 0, kernel_w = 0;
  bool has_expand = false;
};

// The weights inside a blob; unused members are null.
struct BlobWeights {
  PointwiseWeights expand{};
  DepthwiseWeights depthwise{};
  PointwiseWeights pointwise{};  // also the stem's, the projection's and the head's
};

// Checks header and size of the blob of `available` bytes at `blob` and finds the weights in it.
BlobWeights read_blob(BlobKind kind, const BlobShape& shape, const uint8_t* blob,
                      int64_t available);

// Size of the blob, header included.
int64_t blob_bytes(BlobKind kind, const BlobShape& shape);

// A packed tensor that is checked to be uint8, one-dimensional and contiguous, its base aligned for
// floats (a copy where it was not).
Tensor readable_bytes(const Tensor& packed);
BlobWeights read_blob(BlobKind kind, const BlobShape& shape, const Tensor& packed);

// The hidden width and presence of the expansion that an inverted_residual blob names; the other
// sizes come with the call. To be checked by read_blob().
struct PackedBlock {
  int64_t channels_hidden;
  bool has_expand;
};
PackedBlock packed_block(const Tensor& packed);

Tensor pack_depthwise_conv(const Tensor& weight, const OptionalTensor& scale,
                           const OptionalTensor& bias);
Tensor pack_pointwise_conv(const Tensor& weight, const OptionalTensor& scale,
                           const OptionalTensor& bias);
Tensor pack_stem_conv(const Tensor& weight, const OptionalTensor& scale,
                      const OptionalTensor& bias);
Tensor pack_separable_block(const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                            const OptionalTensor& depthwise_bias, const Tensor& pointwise_weight,
                            const OptionalTensor& pointwise_scale,
                            const OptionalTensor& pointwise_bias);
Tensor pack_inverted_residual(const OptionalTensor& expand_weight,
                              const OptionalTensor& expand_scale, const OptionalTensor& expand_bias,
                              const Tensor& depthwise_weight, const OptionalTensor& depthwise_scale,
                              const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                              const OptionalTensor& project_scale,
                              const OptionalTensor& project_bias);
Tensor pack_classifier_head(const Tensor& weight, const OptionalTensor& bias);

}  // namespace fastdw
