#include "kernels/cuda/inverted_residual_variants.cuh"

namespace fastdw::cuda {

BlockVariant inverted_residual_fp32(int index) { return block::variant<Exact, float>(index); }

}  // namespace fastdw::cuda
