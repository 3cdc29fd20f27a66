#include "kernels/cuda/inverted_residual_variants.cuh"

namespace fastdw::cuda {

BlockVariant inverted_residual_tf32(int index) { return block::variant<Tf32, float>(index); }

}  // namespace fastdw::cuda
