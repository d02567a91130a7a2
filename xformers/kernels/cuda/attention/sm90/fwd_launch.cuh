// Launches the forward instances, plain (fwd_plain_launch.cuh), scored (fwd_scored_launch.cuh) and blocked ones
// (fwd_blocked_launch.cuh).
#pragma once

#include <algorithm>
#include <iterator>
#include <numeric>

#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/fwd_kernel.cuh"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm90 {

// What changes scores counts in natural units, so the scale is applied to products first.
inline void set_scored(FwdGrid& grid) {
  const AttentionFwdParams& p = grid.p;
  grid.drops = p.dropout.p > 0;
  grid.scale = grid.unit.scale;
  grid.scales = !p.mods.change_scores() && !(grid.scale > 0);
  if (p.mods.change_scores() || grid.scales) grid.unit = ScoreUnit(1, kLog2e);
  if (!p.mods.bias.data) return;
  grid.has_bias_row = p.mods.bias.q_stride == 0;
  grid.bias_map = tensor_map(rows_of_bias(p), 64);
}

template <class T, int kPolicyIndex>
void launch_forward_as(const FwdArgs& args, cudaStream_t stream) {
  constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  static_assert(sizeof(FwdMemory<kPolicyIndex>) <= 227 * 1024);
  const AttentionFwdParams& p = args.p;
  FwdGrid grid(args);
  grid.tiles = max_tiles(p.shape.seqlen_q, p.seq, kPolicy.block_m());
  const int64_t heads = p.shape.batch * p.shape.num_heads();
  check_grid(heads * grid.tiles, 1);
  grid.all_tiles = static_cast<int>(heads * grid.tiles);
  grid.heads = static_cast<int>(heads);
  grid.bundle = heads_at_a_time(heads, p.shape);
  const bool causal = p.band.window_right != kUnbounded && p.band.window_left == kUnbounded;
  if (causal && !p.seq.packed()) grid.short_tiles = static_cast<int>(grid.tiles / 4);
  grid.q_map = tensor_map(rows_of_q(p), kPolicy.block_m());
  if (p.seq.paged()) grid.page_part = static_cast<int>(std::gcd(p.seq.pages.page_size, kPolicy.block_n));
  if (kPolicy.blocked) grid.page_part = static_cast<int>(std::gcd(p.blocks.block_k, kPolicy.block_n));
  const int key_rows = p.seq.paged() || kPolicy.blocked ? grid.page_part : kPolicy.block_n;
  grid.k_map = tensor_map(rows_of_k(p), key_rows);
  grid.v_map = tensor_map(rows_of_v(p), key_rows);
  if constexpr (kPolicy.scored) set_scored(grid);
  const int64_t blocks = std::min<int64_t>(current_device().multiprocessors, grid.all_tiles);
  if (grid.next_tile) {
    launch_after(attention_fwd_sm90<T, kPolicyIndex>, blocks, 1, kPolicy.threads(), stream, grid,
                 sizeof(FwdMemory<kPolicyIndex>));
  } else {
    launch<sizeof(FwdMemory<kPolicyIndex>)>(attention_fwd_sm90<T, kPolicyIndex>, blocks, 1, kPolicy.threads(), stream,
                                            grid);
  }
}

enum class Kind { kPlain, kScored, kBlocked };
constexpr Kind kind_of(const FwdPolicy& policy) {
  return policy.scored ? Kind::kScored : policy.blocked ? Kind::kBlocked : Kind::kPlain;
}

template <class T, int kHeadDim, int kHeadDimV, Kind kKind, int kPolicyIndex = 0>
void launch_forward_of(const FwdArgs& args, cudaStream_t stream) {
  if constexpr (kPolicyIndex < static_cast<int>(std::size(kFwdPolicies))) {
    if constexpr (kFwdPolicies[kPolicyIndex].head_dim == kHeadDim &&
                  kFwdPolicies[kPolicyIndex].head_dim_v == kHeadDimV && kind_of(kFwdPolicies[kPolicyIndex]) == kKind) {
      if (args.policy == kPolicyIndex) return launch_forward_as<T, kPolicyIndex>(args, stream);
    }
    launch_forward_of<T, kHeadDim, kHeadDimV, kKind, kPolicyIndex + 1>(args, stream);
  }
}

// args.policy is one of these head dims.
template <class T, int kHeadDim, int kHeadDimV>
void launch_forward(const FwdArgs& args, Features, cudaStream_t stream) {
  launch_forward_of<T, kHeadDim, kHeadDimV, Kind::kPlain>(args, stream);
}

template <class T, int kHeadDim, int kHeadDimV>
void launch_forward_scored(const FwdArgs& args, Features, cudaStream_t stream) {
  launch_forward_of<T, kHeadDim, kHeadDimV, Kind::kScored>(args, stream);
}

template <class T, int kHeadDim, int kHeadDimV>
void launch_forward_blocked(const FwdArgs& args, Features, cudaStream_t stream) {
  launch_forward_of<T, kHeadDim, kHeadDimV, Kind::kBlocked>(args, stream);
}

}  // namespace xformers::cuda::sm90
