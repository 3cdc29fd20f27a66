#include "kernels/cuda/inverted_residual_variants.cuh"

namespace fastdw::cuda {

BlockVariant inverted_residual_bf16(int index) {
  return block::variant<Exact, __nv_bfloat16>(index);
}

}  // namespace fastdw::cuda
