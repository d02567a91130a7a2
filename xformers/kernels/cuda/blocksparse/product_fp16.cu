#include "xformers/kernels/cuda/blocksparse/product_mma.cuh"

namespace xformers::cuda {

void block_product_fp16(BlockProductArgs args, const Stream& where) { block_product<__half>(args, where); }

}  // namespace xformers::cuda
