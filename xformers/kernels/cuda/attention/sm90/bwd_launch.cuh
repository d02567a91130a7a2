// Launches the backward instances, plain (bwd_plain_launch.cuh) and scored ones (bwd_scored_launch.cuh): the products,
// dq out of its sums.
#pragma once

#include <algorithm>
#include <iterator>

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/bwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm90 {

// What changes scores counts in natural units, so the scale is applied to products first.
inline void set_scored(BwdGrid& grid, int block_m) {
  const AttentionBwdParams& p = grid.p;
  grid.drops = p.dropout.p > 0;
  if (p.mods.change_scores()) grid.unit = ScoreUnit(1, kLog2e);
  if (!p.mods.bias.data) return;
  grid.has_bias_row = p.mods.bias.q_stride == 0;
  grid.bias_map = tensor_map(rows_of_bias(p), block_m);
}

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
  if constexpr (kPolicy.scored) set_scored(grid, kPolicy.block_m);
  const int64_t blocks = std::min<int64_t>(current_device().multiprocessors, grid.all_tiles);
  launch<kSmemBytes>(attention_bwd_sm90<T, kPolicyIndex>, blocks, 1, kPolicy.threads(), stream, grid);
  return blocks;
}

// One kernel has all sums, or one has dv and one dk and dq.
template <class T, int kHeadDim, int kHeadDimV, bool kScored>
void launch_backward_of(const BwdArgs& args, cudaStream_t stream) {
  constexpr int kDv = bwd_policy_of(kHeadDim, kHeadDimV, kScored, false),
                kDk = bwd_policy_of(kHeadDim, kHeadDimV, kScored, true);
  if constexpr (kDv != kDk) launch_products<T, kDv>(args, stream);
  const int64_t blocks = launch_products<T, kDk>(args, stream);
  launch_dq<T, dq_order(kBwdPolicies[kDk])>(args, /*when_tiles_are_done=*/blocks > 0, stream);
}

template <class T, int kHeadDim, int kHeadDimV>
void launch_backward(const BwdArgs& args, Features, cudaStream_t stream) {
  launch_backward_of<T, kHeadDim, kHeadDimV, false>(args, stream);
}

template <class T, int kHeadDim, int kHeadDimV>
void launch_backward_scored(const BwdArgs& args, Features, cudaStream_t stream) {
  launch_backward_of<T, kHeadDim, kHeadDimV, true>(args, stream);
}

}  // namespace xformers::cuda::sm90
