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
  static_assert(sizes_agree(kHeadDim, Features::of(kFeatures)));
  static_assert(sizeof(BwdShared<kLarge>) == kLarge.smem_bytes() && sizeof(BwdShared<kSmall>) == kSmall.smem_bytes());
  const int64_t heads = args.p.shape.batch * args.p.shape.num_heads(), blocks = heads * args.tiles * args.splits,
                helpers = args.long_tiles.parts && blocks > 0 ? kLongParts : 0;
  const auto kernel = attention_bwd_sm80<T, kHeadDim, kFeatures>;
  const bool large = starts_early(reinterpret_cast<const void*>(kernel));  // kLargeSmem of its code
  launch_with(kernel, blocks + helpers, 1, kLarge.threads(),
              static_cast<int>(large ? sizeof(BwdShared<kLarge>) : sizeof(BwdShared<kSmall>)), stream, args);
  if (args.one_tile) return;
  static_assert(dq_order(kLarge) == dq_order(kSmall));
  launch_dq<T, dq_order(kLarge)>(args, /*when_tiles_are_done=*/blocks > 0 && args.splits == 1, stream);
  if (args.splits > 1) {
    launch<0>(attention_bwd_dkv_sm80<T, kHeadDim, kFeatures>, heads * args.tiles, 2, kLarge.threads(), stream, args);
  }
}

template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream) {
  dispatch<Features::kPlain.code(), Features::kBlocked.code(), Features::kScored.code(), Features::kModified.code(),
           Features::kGeneral.code()>("attention: features", features.code(), [&]<int kFeatures>() {
    launch_backward_as<T, kHeadDim, kFeatures>(args, stream);
  });
}

}  // namespace xformers::cuda::sm80

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                           \
  template void xformers::cuda::sm80::launch_backward<xformers::cuda::type, head_dim>(const BwdArgs&, Features, \
                                                                                      cudaStream_t);
