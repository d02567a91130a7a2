// Launches the decode kernel.
#pragma once

#include "xformers/kernels/cuda/attention/decode/decode_kernel.cuh"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::decode {

template <class T, int kHeadDim>
void launch_decode(const FwdArgs& args, Features, cudaStream_t stream) {
  constexpr DecodePolicy kPolicy = decode_policy(kHeadDim);
  const AttentionShape& shape = args.p.shape;
  const int64_t tiles = shape.batch * shape.num_heads() / args.packed_heads.size() * args.tiles;
  launch_after(attention_decode<T, kHeadDim>, tiles, args.num_splits, kPolicy.threads(), stream, args,
               static_cast<int>(sizeof(DecodeMemory<kPolicy>)), args.parts_meet ? args.num_splits : 1);
}

}  // namespace xformers::cuda::decode

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                           \
  template void xformers::cuda::decode::launch_decode<xformers::cuda::type, head_dim>(const FwdArgs&, Features, \
                                                                                      cudaStream_t);
