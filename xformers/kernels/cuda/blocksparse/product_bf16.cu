#include "xformers/kernels/cuda/blocksparse/product_mma.cuh"

namespace xformers::cuda {

void block_product_bf16(BlockProductArgs args, const Stream& where) { block_product<__nv_bfloat16>(args, where); }

}  // namespace xformers::cuda
