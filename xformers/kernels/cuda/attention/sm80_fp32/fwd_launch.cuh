// Launches one forward instance.
#pragma once

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/fwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80_fp32 {

template <int kHeadDim, bool kScored>
void launch_forward_as(FwdArgs args, cudaStream_t stream) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kScored);
  const AttentionShape& shape = args.p.shape;
  args.tiles = max_tiles(shape.seqlen_q * args.packed_heads.size(), args.p.seq, kPolicy.block_m());
  const int64_t heads = shape.batch * shape.num_heads() / args.packed_heads.size();
  args.heads_at_once = heads_at_once(heads, args.tiles, kPolicy.blocks_per_sm, 8 * shape.seqlen_k * kHeadDim);
  launch<kPolicy.smem_bytes()>(attention_fwd_sm80_fp32<kHeadDim, kScored>, heads * args.tiles, 1, kPolicy.threads(),
                               stream, args);
}

template <int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream) {
  if (features.score_ops == 0) return launch_forward_as<kHeadDim, false>(args, stream);
  launch_forward_as<kHeadDim, true>(args, stream);
}

}  // namespace xformers::cuda::sm80_fp32

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)         \
  static_assert(std::is_same_v<xformers::cuda::type, float>); \
  template void xformers::cuda::sm80_fp32::launch_forward<head_dim>(const FwdArgs&, Features, cudaStream_t);
