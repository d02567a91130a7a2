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
void launch_backward_as(const BwdArgs& args, cudaStream_t stream) {
  constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  static_assert(sizeof(BwdMemory<kPolicyIndex>) <= 227 * 1024);
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
  launch<sizeof(BwdMemory<kPolicyIndex>)>(attention_bwd_sm90<T, kPolicyIndex>, blocks, 1, kPolicy.threads(), stream,
                                          grid);
  launch_dq<T, dq_order(kPolicy)>(args, /*when_tiles_are_done=*/blocks > 0, stream);
}

// One of the policies has this head dim.
template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features, cudaStream_t stream) {
  launch_backward_as<T, bwd_policy_of(kHeadDim)>(args, stream);
}

}  // namespace xformers::cuda::sm90

#define XFORMERS_INSTANCE(type, head_dim, head_dim_v)                                                           \
  template void xformers::cuda::sm90::launch_backward<xformers::cuda::type, head_dim>(const BwdArgs&, Features, \
                                                                                      cudaStream_t);
