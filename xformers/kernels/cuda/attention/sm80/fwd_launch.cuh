// Launches one forward instance.
#pragma once

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80 {

template <class T, int kHeadDim, Features kFeatures>
void launch_forward_as(FwdArgs args, cudaStream_t stream) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kFeatures);
  const AttentionShape& shape = args.p.shape;
  args.tiles = max_tiles(shape.seqlen_q * args.packed_heads, args.p.seq, kPolicy.block_m());
  const int64_t heads = shape.batch * shape.num_heads() / args.packed_heads;
  launch<kPolicy.smem_bytes()>(attention_fwd_sm80<T, kHeadDim, kFeatures>, heads * args.tiles, args.num_splits,
                               kPolicy.threads(), stream, FwdGrid(args, heads_at_a_time(heads, args)));
}

template <class T, int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream) {
  switch (features) {
    case Features::kPlain: return launch_forward_as<T, kHeadDim, Features::kPlain>(args, stream);
    case Features::kScored: return launch_forward_as<T, kHeadDim, Features::kScored>(args, stream);
    case Features::kGeneral: return launch_forward_as<T, kHeadDim, Features::kGeneral>(args, stream);
  }
}

}  // namespace xformers::cuda::sm80

#define XFORMERS_INSTANCE(type, head_dim)                                                                      \
  template void xformers::cuda::sm80::launch_forward<xformers::cuda::type, head_dim>(const FwdArgs&, Features, \
                                                                                     cudaStream_t);
