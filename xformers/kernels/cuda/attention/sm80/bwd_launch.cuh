// Launches one backward instance: the products; dq out of its sums; dk and dv where they are in parts.
#pragma once

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_kernel.cuh"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80 {

template <class T, int kHeadDim, int kFeatures>
void launch_backward_as(const BwdArgs& args, cudaStream_t stream) {
  constexpr BwdPolicy kLarge = bwd_policy(kHeadDim, Features::of(kFeatures), true),
                      kSmall = bwd_policy(kHeadDim, Features::of(kFeatures), false);
  const int64_t heads = args.p.shape.batch * args.p.shape.num_heads(), blocks = heads * args.tiles * args.splits;
  // Code that uses less may run on a GPU that has more.
  if (current_device().smem_per_block >= kLarge.smem_bytes()) {
    launch<kLarge.smem_bytes()>(attention_bwd_sm80<T, kHeadDim, kFeatures>, blocks, 1, kLarge.threads(), stream, args);
  } else {
    launch<kSmall.smem_bytes()>(attention_bwd_sm80<T, kHeadDim, kFeatures>, blocks, 1, kSmall.threads(), stream, args);
  }
  // Without any query nothing was zeroed by which to count tiles. (Packed sequences still have blocks of queries then.)
  const int64_t query_blocks = args.p.shape.seqlen_q > 0 ? heads * args.query_blocks : 0;
  if (blocks == 0 || args.splits > 1) {
    launch<0>(attention_bwd_dq_sm80<T, kHeadDim, kFeatures>, query_blocks, 1, kLarge.threads(), stream, args);
  } else {
    launch_after(attention_bwd_dq_sm80<T, kHeadDim, kFeatures>, query_blocks, 1, kLarge.threads(), stream, args);
  }
  if (args.splits > 1) {
    launch<0>(attention_bwd_dkv_sm80<T, kHeadDim, kFeatures>, heads * args.tiles, 2, kLarge.threads(), stream, args);
  }
}

template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream) {
  dispatch<Features::kPlain.code(), Features::kScored.code(), Features::kGeneral.code()>(
      "attention: features", features.code(),
      [&]<int kFeatures>() { launch_backward_as<T, kHeadDim, kFeatures>(args, stream); });
}

}  // namespace xformers::cuda::sm80

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                           \
  template void xformers::cuda::sm80::launch_backward<xformers::cuda::type, head_dim>(const BwdArgs&, Features, \
                                                                                      cudaStream_t);
