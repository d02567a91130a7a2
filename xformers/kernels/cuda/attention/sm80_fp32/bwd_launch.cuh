// Launches one backward instance: zeros in dq, then the products.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80_fp32 {

// One block per (row, head) at a time.
template <int kHeadDim>
__global__ void clear_dq_sm80_fp32(const __grid_constant__ BwdArgs args) {
  const AttentionShape& shape = args.p.shape;
  const HeadsTensor& dq = args.p.dq;
  const int64_t rows = shape.batch * shape.seqlen_q * shape.num_heads();
  constexpr int kLanes = kHeadDim / kChunk;
  const int64_t step = gridDim.x * int64_t{blockDim.x} / kLanes;
  for (int64_t index = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / kLanes; index < rows; index += step) {
    int64_t rest = index / shape.heads_per_group;
    const int64_t head = index % shape.heads_per_group, group = rest % shape.num_groups;
    rest /= shape.num_groups;
    float* const row = static_cast<float*>(dq.data) + rest / shape.seqlen_q * dq.batch_stride +
                       rest % shape.seqlen_q * dq.seq_stride + group * dq.group_stride + head * dq.head_stride;
    store_4(row, static_cast<int>(threadIdx.x) % kLanes * kChunk, static_cast<int>(shape.head_dim), args.aligned,
            {0, 0, 0, 0});
  }
}

template <int kHeadDim, bool kScored>
void launch_backward_as(BwdArgs args, cudaStream_t stream) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kScored);
  constexpr int kClearThreads = 256;
  const AttentionShape& shape = args.p.shape;
  const int64_t heads = shape.batch * shape.num_heads();
  const int64_t clear_blocks = (heads * shape.seqlen_q * (kHeadDim / kChunk) + kClearThreads - 1) / kClearThreads;
  launch<0>(clear_dq_sm80_fp32<kHeadDim>, std::min<int64_t>(clear_blocks, 1 << 16), 1, kClearThreads, stream, args);
  args.tiles = max_tiles(shape.seqlen_k, args.p.seq, kPolicy.block_n());
  args.heads_at_once = heads_at_once(heads, args.tiles, kPolicy.blocks_per_sm, 12 * shape.seqlen_q * kHeadDim);
  launch<kPolicy.smem_bytes()>(attention_bwd_sm80_fp32<kHeadDim, kScored>, heads * args.tiles, 1, kPolicy.threads(),
                               stream, args);
}

template <int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream) {
  if (features.score_ops == 0) return launch_backward_as<kHeadDim, false>(args, stream);
  launch_backward_as<kHeadDim, true>(args, stream);
}

}  // namespace xformers::cuda::sm80_fp32

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)         \
  static_assert(std::is_same_v<xformers::cuda::type, float>); \
  template void xformers::cuda::sm80_fp32::launch_backward<head_dim>(const BwdArgs&, Features, cudaStream_t);
