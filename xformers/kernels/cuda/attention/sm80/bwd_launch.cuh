// Launches one backward instance: the products, then dq out of its sums.
#pragma once

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80 {

template <class T, int kHeadDim, Features kFeatures>
void launch_backward_as(BwdArgs args, cudaStream_t stream) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kFeatures);
  const AttentionShape& shape = args.p.shape;
  const int64_t heads = shape.batch * shape.num_heads();
  args.tiles = max_tiles(shape.seqlen_k, args.p.seq, kPolicy.block_n());
  launch<kPolicy.smem_bytes()>(attention_bwd_sm80<T, kHeadDim, kFeatures>, heads * args.tiles, 1, kPolicy.threads(),
                               stream, args);
  launch<0>(attention_bwd_dq_sm80<T, kHeadDim, kFeatures>, heads * args.query_blocks, 1, kPolicy.threads(), stream,
            args);
}

template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream) {
  switch (features) {
    case Features::kPlain: return launch_backward_as<T, kHeadDim, Features::kPlain>(args, stream);
    case Features::kScored: return launch_backward_as<T, kHeadDim, Features::kScored>(args, stream);
    case Features::kGeneral: return launch_backward_as<T, kHeadDim, Features::kGeneral>(args, stream);
  }
}

}  // namespace xformers::cuda::sm80

#define XFORMERS_INSTANCE(type, head_dim)                                                                       \
  template void xformers::cuda::sm80::launch_backward<xformers::cuda::type, head_dim>(const BwdArgs&, Features, \
                                                                                      cudaStream_t);
