// What a kernel is given: plain pointers and sizes, no torch. Sizes count elements. A Layout tells
// where an image lies: as the user holds it (NHWC), or, between the steps of a network, in blocks of
// 16 channels.
// Packed weights hold the output channels in blocks of 16, the same for every instruction set, with
// the batch-norm scale already multiplied in; see kernels/README.md for a drawing.
#pragma once

#include <cstdint>

namespace fastdw {

constexpr int64_t kChannelBlock = 16;

constexpr int64_t channel_blocks(int64_t channels) {
  return (channels + kChannelBlock - 1) / kChannelBlock;
}

// Channel c of pixel p of image n: data[n * image + p * pixel + c / 16 * block + c % 16].
struct Layout {
  int64_t pixel, block, image;

  // The 16 channels of a pixel lie next to those of the next pixel, as the matrix product reads
  // them; so do NHWC images of 16 channels.
  constexpr bool is_blocked() const { return pixel == kChannelBlock; }
};

constexpr Layout nhwc_layout(int64_t channels, int64_t pixels) {
  return {channels, kChannelBlock, channels * pixels};
}

// [channels / 16][pixel][16], the last block padded: whole blocks may be read and written.
constexpr Layout blocked_layout(int64_t channels, int64_t pixels) {
  return {kChannelBlock, pixels * kChannelBlock, channel_blocks(channels) * pixels * kChannelBlock};
}

// The last two are gates of a squeeze-excite: a linear layer alone may end in them.
enum class Activation : int32_t {
  none = 0,
  relu = 1,
  relu6 = 2,
  hardswish = 3,
  silu = 4,
  hardsigmoid = 5,
  sigmoid = 6
};

// The sampling window of a convolution. Padding to the right and below follows from the output
// size.
struct Window {
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_left, pad_top;
};

// y[o] = sum_t taps[t][o] * x[window t][o / multiplier] + bias[o]
struct DepthwiseWeights {
  const float* taps;  // [blocks(channels_out)][kernel_h * kernel_w][16], zero beyond channels_out
  const float* bias;  // [blocks(channels_out) * 16]
};

// y[o] = sum_k panels[k][o] * x[k] + bias[o]
struct PointwiseWeights {
  const float* panels;  // [blocks(channels_out)][channels_in][16], zero beyond channels_out
  const float* bias;    // [blocks(channels_out) * 16]
};

// Where a depthwise convolution leaves the sum over the columns of each of its rows, taken while
// the row is in the L1 cache: [batch][height_out][blocks(channels) * 16], undefined beyond
// `channels`. A row's sum is added up by one thread from left to right, so that neither the rows
// that a thread takes nor how many it filters at once changes a bit.
constexpr Layout row_sums_layout(int64_t channels, int64_t rows) {
  const int64_t padded = channel_blocks(channels) * kChannelBlock;
  return {padded, kChannelBlock, padded * rows};
}

struct DepthwiseParams {
  const float* x;  // [batch, height, width, channels_in]
  float* y;        // [batch, height_out, width_out, channels_in * multiplier]
  Layout x_layout, y_layout;
  DepthwiseWeights weights;
  int64_t batch, height, width, channels_in, multiplier, height_out, width_out;
  Window window;
  Activation activation;
  float* row_sums = nullptr;  // or null: row_sums_layout()

  int64_t units() const { return batch * height_out; }  // one unit: one output row
};

struct PointwiseParams {
  const float* x;         // [batch, pixels, channels_in]
  const float* residual;  // [batch, pixels, channels_out] or null; added after the activation
  float* y;               // [batch, pixels, channels_out]
  Layout x_layout, residual_layout, y_layout;
  PointwiseWeights weights;
  int64_t batch, pixels, channels_in, channels_out;
  Activation activation;
  bool has_gate = false;        // squeeze-excite: x is multiplied by gate, image by image
  const float* gate = nullptr;  // [batch, channels_in]
  int64_t bias_image = 0;  // floats from the bias of one image to the next: 0 if all share one

  // With more output channels than pixels the weights are the larger part: they are split.
  bool splits_channels() const { return channels_out > pixels; }
  int64_t units() const {  // one unit: one pixel, or 16 output channels, of an image
    return batch * (splits_channels() ? channel_blocks(channels_out) : pixels);
  }
};

// Dense convolution of few input channels. x is read as the user holds it: planes (NCHW) or
// interleaved (NHWC). weights.panels: [blocks(channels_out)][K][16], K = channels_in * kernel_h *
// kernel_w in the order of torch's weight (channel, row, column).
struct StemParams {
  const float* x;  // [batch, channels_in, height, width] or [batch, height, width, channels_in]
  bool channels_last;
  float* y;  // [batch, height_out, width_out, channels_out]
  Layout y_layout;
  PointwiseWeights weights;
  int64_t batch, height, width, channels_in, channels_out, height_out, width_out;
  Window window;  // dilation 1
  Activation activation;

  int64_t units() const { return batch * height_out; }  // one unit: one output row
};

// Dense convolution of any number of input channels. weights.panels: [blocks(channels_out)][K][16],
// K = kernel_h * kernel_w * channels_in in the order row, column, channel.
struct DenseConvParams {
  const float* x;  // [batch, height, width, channels_in]
  float* y;        // [batch, height_out, width_out, channels_out]
  Layout x_layout, y_layout;
  PointwiseWeights weights;
  int64_t batch, height, width, channels_in, channels_out, height_out, width_out;
  Window window;
  Activation activation;

  // As for a pointwise convolution: of few pixels the weights are the larger part.
  bool splits_channels() const { return channels_out > height_out * width_out; }
  int64_t units() const {  // one unit: one output row, or 16 output channels, of an image
    return batch * (splits_channels() ? channel_blocks(channels_out) : height_out);
  }
};

// bilinear: pixels have their centres at halves; bilinear_aligned: the corner pixels coincide.
enum class ResizeMode : int32_t { nearest = 0, bilinear = 1, bilinear_aligned = 2 };

// x at another size.
struct ResizeParams {
  const float* x;  // [batch, height, width, channels]
  float* y;        // [batch, height_out, width_out, channels]
  Layout x_layout, y_layout;
  int64_t batch, height, width, channels, height_out, width_out;
  ResizeMode mode;

  int64_t units() const { return batch * height_out; }  // one unit: one output row
};

// y[first_out + i * step_out] = x[first_in + i] of every pixel, i < channels; y's others stay.
struct CopyChannelsParams {
  const float* x;  // [batch, pixels, ...]
  float* y;        // [batch, pixels, ...]
  Layout x_layout, y_layout;
  int64_t batch, pixels, channels, first_in, first_out, step_out;

  int64_t units() const { return batch * pixels; }  // one unit: one pixel of an image
};

// y = the largest value of each window, NaN where it holds one; padding counts for nothing.
struct MaxPoolParams {
  const float* x;  // [batch, height, width, channels]
  float* y;        // [batch, height_out, width_out, channels]
  Layout x_layout, y_layout;
  int64_t batch, height, width, channels, height_out, width_out;
  Window window;

  int64_t units() const { return batch * height_out; }  // one unit: one output row
};

// expand (1x1, optional) -> depthwise -> project (1x1) [+ x]: an inverted residual (MobileNet V2),
// or, without expansion, a depthwise-separable block (MobileNet V1).
struct InvertedResidualParams {
  const float* x;  // [batch, height, width, channels_in]
  float* y;        // [batch, height_out, width_out, channels_out]
  Layout x_layout, y_layout;
  bool has_expand;
  bool residual;            // add x; shapes of x and y are then the same
  PointwiseWeights expand;  // channels_in -> channels_hidden; unused without expansion
  DepthwiseWeights depthwise;
  PointwiseWeights project;  // channels_hidden -> channels_out
  int64_t batch, height, width, channels_in, channels_hidden, channels_out, height_out, width_out;
  Window window;
  Activation expand_activation, depthwise_activation, project_activation;
  // How the block is cut: output rows of a band, hidden blocks expanded before they are filtered;
  // 0: as cpu/blocking.h chooses.
  int64_t band_rows = 0, chunk_blocks = 0;
  // With more than one share each takes its hidden channels through the block, over all rows, and
  // leaves its summand of the projection in partial_sums: [batch][share], images as y_layout of
  // blocks has them. HiddenShareSumParams adds them up.
  int64_t hidden_shares = 1;
  float* partial_sums = nullptr;
  // Without projection y is the depthwise convolution's result: channels_out = channels_hidden.
  // Shares then have nothing to add up.
  bool has_project = true;
  float* row_sums = nullptr;  // or null: row_sums_layout()

  // One unit: one output row, of one share.
  int64_t units() const { return batch * hidden_shares * height_out; }
};

// y = act(sum of the shares' partial sums) [+ x]
struct HiddenShareSumParams {
  InvertedResidualParams block;

  int64_t units() const {  // one unit: 16 output channels of an image
    return block.batch * channel_blocks(block.channels_out);
  }
};

// A stem whose result only a block without expansion reads: the stem's rows take the place of the
// expanded ones and never leave the cache. Unused: stem.y, stem.y_layout, block.x; block.has_expand
// is true, block.x_layout blocked.
struct StemBlockParams {
  StemParams stem;
  InvertedResidualParams block;

  int64_t units() const { return block.units(); }  // one unit: one output row
};

// y[n][c] = sum over the pixels of x[n][:, c] / divisor
struct GlobalPoolParams {
  const float* x;  // [batch, pixels, channels], or the sums of so many rows
  float* y;        // [batch, channels]
  Layout x_layout;
  int64_t batch, pixels, channels;
  int64_t divisor;  // the image's pixels

  int64_t units() const { return batch * channel_blocks(channels); }  // one unit: 16 channels
};

// y[n][o] = act(sum_k x[n][k] panels[k][o] + bias[o])
struct LinearParams {
  const float* x;  // [batch, channels_in]
  float* y;        // [batch, channels_out]
  PointwiseWeights weights;
  int64_t batch, channels_in, channels_out;
  Activation activation;

  int64_t units() const { return channel_blocks(channels_out); }  // one unit: 16 outputs, all rows
};

// Multiply-adds in registers, to find the peak: sum = sum * x[0] + x[1], each row 16 wide.
constexpr int64_t kPeakChains = 12;
struct FmaChainsParams {
  const float* x;  // [2 + kPeakChains, 16]: factor, summand, the sums' first values
  float* y;        // [kPeakChains, 16]: the sums
  int64_t steps;

  int64_t units() const { return steps; }  // one unit: a multiply-add on each of y's elements
};

// Reads x from end to end, to find the bandwidth of the memory that it lies in.
struct ReadPassesParams {
  const float* x;  // [floats], a multiple of kPeakChains * 16
  float* y;        // [kPeakChains * 16]: sums
  int64_t floats, passes;

  int64_t units() const { return passes; }  // one unit: all of x once
};

}  // namespace fastdw
