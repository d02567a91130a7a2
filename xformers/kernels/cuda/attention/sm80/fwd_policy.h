// Tile sizes of the forward kernel: chosen on the host, handed to the kernel as one template argument.
#pragma once

#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda::sm80 {

// Shared memory: Q, K, V, this block's bias, what warps that share rows tell each other.
struct FwdPolicy {
  int head_dim;  // both head dims are padded to it
  Features features;
  int warps = 4;
  int row_tiles = 2;  // of 16 rows, per warp
  int block_n = 64;   // keys per step
  int sharers = 1;    // warps that share rows: each takes a part of the keys in the scores, of the dims in the output
  int blocks_per_sm = 2;
  bool spans = false;  // row tiles go on where a packed sequence ends (fwd_span.cuh)

  // Rows know the diagonal that ALiBi's distances count from.
  constexpr bool tilts() const { return features.may(kAlibiOp); }

  constexpr int threads() const { return 32 * warps; }
  constexpr int warp_rows() const { return 16 * row_tiles; }
  constexpr int block_m() const { return warp_rows() * warps / sharers; }
  constexpr int warp_keys() const { return block_n / sharers; }
  constexpr int warp_dims() const { return head_dim / sharers; }

  constexpr int q_bytes() const { return 2 * head_dim * block_m(); }
  constexpr int keys_bytes() const { return 2 * head_dim * block_n; }  // K, or V
  constexpr int bias_bytes() const { return features == Features::kScored ? 2 * block_m() * block_n : 0; }
  constexpr int shared_row_bytes() const { return sharers == 1 ? 0 : 4 * warp_rows() * warps; }
  constexpr int shared_scores_bytes() const { return sharers == 1 ? 0 : 2 * block_m() * block_n; }
  constexpr int smem_bytes() const {
    return q_bytes() + 2 * keys_bytes() + bias_bytes() + shared_row_bytes() + shared_scores_bytes();
  }
};

// Two row tiles per warp use every key and value fragment twice, where the accumulators fit in 255 registers; wide
// heads need two warps for that. Scored, blocked: fewer keys per step leave room for what bias and dropout need. (What
// else was tried: docs/design/cuda-attention.md.)
constexpr FwdPolicy fwd_policy(int head_dim, Features features) {
  if (features == Features::kShort) {
    FwdPolicy policy = fwd_policy(head_dim, Features::kPlain);
    policy.spans = true;
    return policy;
  }
  FwdPolicy policy{.head_dim = head_dim, .features = features};
  if (features == Features::kGeneral) {
    policy.row_tiles = 1;
  } else if (head_dim <= 64) {
    policy.block_n = features == Features::kPlain ? 128 : 64;
  } else if (head_dim > 128) {
    policy.warps = 8, policy.sharers = 2, policy.blocks_per_sm = 1;
  }
  return policy;
}

// Whether there is an instance kShort beside the plain one. (Warps that share rows would have to wait for each other.)
constexpr bool may_span(int head_dim) { return fwd_policy(head_dim, Features::kPlain).sharers == 1; }

}  // namespace xformers::cuda::sm80
