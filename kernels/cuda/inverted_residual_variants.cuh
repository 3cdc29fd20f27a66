// Instances of the block kernel: pixels by output channels of a thread block.
#pragma once

#include "kernels/cuda/inverted_residual.cuh"

namespace fastdw::cuda {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    inverted_residual(InvertedResidualKernelParams params) {
  wait_for_previous_launch();
  block::Kernel<Shape>(params).run();
}

namespace block {

template <class Math, class T, int kWarpsDown, int kWarpsAcross, int kN, int kBlocks>
BlockVariant variant_of_shape(const char* name) {
  using Chosen = Shape<Math, T, kWarpsDown, kWarpsAcross, kN, kBlocks>;
  return {name,            inverted_residual<Chosen>, Chosen::kRows,
          Chosen::kColumns, Chosen::kThreads,         Chosen::kBlocks};
}

// Null kernel beyond the last. 256 rows are for whole images of 14 x 14 pixels.
template <class Math, class T>
BlockVariant variant(int index) {
  switch (index) {
    case 0:
      return variant_of_shape<Math, T, 4, 2, 2, 2>("inverted_residual 128x32");
    case 1:
      return variant_of_shape<Math, T, 4, 2, 4, 2>("inverted_residual 128x64");
    case 2:
      return variant_of_shape<Math, T, 4, 2, 6, 2>("inverted_residual 128x96");
    case 3:
      return variant_of_shape<Math, T, 4, 2, 10, 1>("inverted_residual 128x160");
    case 4:
      return variant_of_shape<Math, T, 2, 4, 8, 1>("inverted_residual 64x256");
    case 5:
      return variant_of_shape<Math, T, 2, 4, 10, 1>("inverted_residual 64x320");
    case 6:
      return variant_of_shape<Math, T, 8, 2, 2, 1>("inverted_residual 256x32");
    case 7:
      return variant_of_shape<Math, T, 8, 2, 6, 1>("inverted_residual 256x96");
    default:
      return {};
  }
}

}  // namespace block
}  // namespace fastdw::cuda
