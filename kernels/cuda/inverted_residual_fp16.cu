#include "kernels/cuda/inverted_residual_variants.cuh"

namespace fastdw::cuda {

BlockVariant inverted_residual_fp16(int index) { return block::variant<Exact, __half>(index); }

}  // namespace fastdw::cuda
