// Launches one backward instance: the products, dq out of its sums.
#pragma once

#include <algorithm>
#include <iterator>

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/bwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm90 {

template <class T, int kPolicyIndex>
int64_t launch_products(const BwdArgs& args, cudaStream_t stream) {  // of so many blocks
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  constexpr int kSmemBytes = static_cast<int>(sizeof(BwdMemory<kPolicyIndex>));
  static_assert(kSmemBytes <= 227 * 1024);
  const AttentionBwdParams& p = args.p;
  BwdGrid grid(args);
  grid.heads = static_cast<int>(p.shape.batch * p.shape.num_heads());
  check_grid(grid.heads * args.tiles, 1);
  grid.all_tiles = static_cast<int>(grid.heads * args.tiles);
  grid.q_map = tensor_map(rows_of_q(p), kPolicy.block_m);
  grid.k_map = tensor_map(rows_of_k(p), kPolicy.kBlockN);
  grid.v_map = tensor_map(rows_of_v(p), kPolicy.kBlockN);
  grid.dout_map = tensor_map(rows_of_dout(p), kPolicy.block_m);
  const int64_t blocks = std::min<int64_t>(current_device().multiprocessors, grid.all_tiles);
  launch<kSmemBytes>(attention_bwd_sm90<T, kPolicyIndex>, blocks, 1, kPolicy.threads(), stream, grid);
  return blocks;
}

// One kernel has all sums, or one has dv and one dk and dq.
template <class T, int kHeadDim, int kHeadDimV>
void launch_backward(const BwdArgs& args, Features, cudaStream_t stream) {
  constexpr int kDv = bwd_policy_of(kHeadDim, kHeadDimV, false), kDk = bwd_policy_of(kHeadDim, kHeadDimV, true);
  if constexpr (kDv != kDk) launch_products<T, kDv>(args, stream);
  const int64_t blocks = launch_products<T, kDk>(args, stream);
  launch_dq<T, dq_order(kBwdPolicies[kDk])>(args, /*when_tiles_are_done=*/blocks > 0, stream);
}

}  // namespace xformers::cuda::sm90

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                              \
  template void xformers::cuda::sm90::launch_backward<xformers::cuda::type, head_dim, head_dim_v>( \
      const BwdArgs&, Features, cudaStream_t);
