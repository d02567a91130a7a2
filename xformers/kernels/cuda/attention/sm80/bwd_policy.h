// Tile sizes of the backward kernel: chosen on the host, used by the kernel, its launch and the passes around it.
#pragma once

#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda::sm80 {

struct BwdPolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int key_tiles;  // of 16 keys, per warp
  int halves;     // 2: pairs of warps share their keys, halve the queries of the scores and the dims of dk and dv
  int block_m;    // queries per step
  int stages;     // tiles of q and dout in shared memory
  Features features;

  constexpr int block_n() const { return 16 * warps / halves * key_tiles; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int tile_bytes(int rows) const { return 2 * head_dim * rows; }
  constexpr int scores_bytes() const { return 2 * block_n() * block_m; }
  constexpr int smem_bytes() const {
    return 2 * tile_bytes(block_n()) + 2 * stages * tile_bytes(block_m) + halves * scores_bytes() +
           stages * 2 * 4 * block_m;
  }
  // Blocks that share a multiprocessor: what the registers allow.
  constexpr int blocks_per_sm() const { return warps == 4 ? 2 : 1; }
  // dq = dS k: warps over queries and over dims.
  constexpr int dq_row_warps() const {
    return head_dim / 8 % (warps / 2 * 2) == 0 ? 2 : 4;
  }  // dims go in pairs of tiles
  constexpr int dq_row_tiles() const { return block_m / 16 / dq_row_warps(); }
  constexpr int dq_dim_tiles() const { return head_dim / 8 / (warps / dq_row_warps()); }
};

// A key tile's dk and dv stay in registers. Measured on an H100, bf16, TFLOP/s at S 4096 full and causal:
//   head_dim 64   4 warps x 32 keys, 32 queries: 258, 226; 8 warps x 16 keys, 64 queries: 233, 210; pairs of warps with
//                 128 queries: 234, 211
//   head_dim 128  pairs of warps x 32 keys: 285, 248; 8 warps x 16 keys: 228, 206; 4 warps x 16 keys: 228, 206
//   head_dim 256  64 queries in one stage: 206, 196; 32 queries in two stages: 199, 182
constexpr BwdPolicy bwd_policy(int head_dim, Features features) {
  if (head_dim <= 64) return {head_dim, 4, 2, 1, 32, 2, features};
  if (head_dim <= 128) return {head_dim, 8, 2, 2, 64, 2, features};
  return {head_dim, 8, 1, 2, 64, 1, features};
}

}  // namespace xformers::cuda::sm80
