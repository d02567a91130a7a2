// Launches one forward instance.
#pragma once

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80 {

template <class T, int kHeadDim, int kFeatures>
void launch_forward_as(FwdArgs args, cudaStream_t stream) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, Features::of(kFeatures));
  const AttentionShape& shape = args.p.shape;
  const int64_t rows = shape.seqlen_q * args.packed_heads.size();
  const int64_t heads = shape.batch * shape.num_heads() / args.packed_heads.size();
  args.tiles = kPolicy.spans ? spanning_tiles(rows, kPolicy.block_m()) : max_tiles(rows, args.p.seq, kPolicy.block_m());
  launch<kPolicy.smem_bytes()>(attention_fwd_sm80<T, kHeadDim, kFeatures>, heads * args.tiles, args.num_splits,
                               kPolicy.threads(), stream, FwdGrid(args, heads_at_a_time(heads, shape)));
}

template <class T, int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream) {
  if constexpr (may_span(kHeadDim)) {
    if (features == Features::kShort) return launch_forward_as<T, kHeadDim, Features::kShort.code()>(args, stream);
  }
  dispatch<Features::kPlain.code(), Features::kBlocked.code(), Features::kScored.code(), Features::kModified.code(),
           Features::kGeneral.code()>("attention: features", features.code(), [&]<int kFeatures>() {
    launch_forward_as<T, kHeadDim, kFeatures>(args, stream);
  });
}

}  // namespace xformers::cuda::sm80

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                          \
  template void xformers::cuda::sm80::launch_forward<xformers::cuda::type, head_dim>(const FwdArgs&, Features, \
                                                                                     cudaStream_t);
