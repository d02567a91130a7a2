// Tile sizes of the backward kernel: chosen on the host, used by the kernel, its launch and the passes around it.
#pragma once

#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda::sm80 {

struct BwdPolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int sharing;  // warps that share 32 keys, and part the queries of the scores and the dims of dk and dv
  int block_m;  // queries per step
  int stages;   // tiles of q and dout in shared memory
  Features features;

  static constexpr int kKeyTiles = 2;  // of 16 keys, per warp

  constexpr int block_n() const { return 16 * kKeyTiles * warps / sharing; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int tile_bytes(int rows) const { return 2 * head_dim * rows; }
  constexpr int scores_bytes() const { return 2 * block_n() * block_m; }
  constexpr int score_tiles() const { return (sharing > 1 ? 2 : 1) + (features == Features::kScored ? 1 : 0); }
  constexpr int smem_bytes() const {
    return 2 * tile_bytes(block_n()) + 2 * stages * tile_bytes(block_m) + score_tiles() * scores_bytes() +
           stages * 2 * 4 * block_m;
  }
  // Blocks that share a multiprocessor: what the registers allow.
  constexpr int blocks_per_sm() const { return warps == 4 ? 2 : 1; }
  // dq = dS k: warps over queries and over dims.
  constexpr int dq_row_warps() const { return head_dim / 8 % (warps / 2 * 2) == 0 ? 2 : 4; }  // dims: pairs of tiles
  constexpr int dq_row_tiles() const { return block_m / 16 / dq_row_warps(); }
  constexpr int dq_dim_tiles() const { return head_dim / 8 / (warps / dq_row_warps()); }
};

// A key tile's dk and dv stay in registers. `large`: 227 KiB of shared memory (compute capability 9.0), else 163.
// Block sizes don't depend on it.
constexpr BwdPolicy bwd_policy(int head_dim, Features features, bool large) {
  if (head_dim <= 64) return {head_dim, 4, 1, 32, 2, features};
  if (head_dim <= 128) return {head_dim, 8, 2, 64, large || features != Features::kScored ? 2 : 1, features};
  return {head_dim, 8, 4, 64, large ? 2 : 1, features};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kLargeSmem = false;
#else
inline constexpr bool kLargeSmem = true;
#endif

}  // namespace xformers::cuda::sm80
