// Tile sizes of the backward kernel: chosen on the host, used by the kernel, its launch and the passes around it.
#pragma once

#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda::sm80 {

struct BwdPolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int sharing;  // warps that share 32 keys, and part the queries of the scores and the dims of dk and dv
  int block_m;  // queries per step
  int stages;   // tiles of q and dout in shared memory; 1: each is loaded anew while the products with the other run
  Features features;
  bool behind;  // dq is added a step later, by half of the warps before this step's scores, by the others after them

  static constexpr int kKeyTiles = 2;      // of 16 keys, per warp
  static constexpr int kPlaceBytes = 152;  // of BwdTile

  constexpr int block_n() const { return 16 * kKeyTiles * warps / sharing; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int tile_bytes(int rows) const { return 2 * head_dim * rows; }
  constexpr int scores_bytes() const { return 2 * block_n() * block_m; }
  constexpr int ds_tiles() const { return behind ? 2 : 1; }
  constexpr int score_tiles() const { return ds_tiles() + (sharing > 1 ? 1 : 0); }  // and P
  constexpr int bias_bytes() const { return features == Features::kScored ? stages * scores_bytes() : 0; }
  // sizeof(BwdShared), for whoever only asks whether it fits.
  constexpr int smem_bytes() const {
    const int tiles = 2 * tile_bytes(block_n()) + 2 * stages * tile_bytes(block_m);
    const int rows =
        stages * 2 * 4 * block_m + 8 * (block_n() + block_n() / 32) + 4 * 8 * block_m / dq_rows() + 12 * warps + 8;
    return (tiles + score_tiles() * scores_bytes() + bias_bytes() + rows + kPlaceBytes + 127) / 128 * 128;
  }
  // Blocks that share a multiprocessor: what the registers allow.
  constexpr int blocks_per_sm() const { return warps == 4 ? 2 : 1; }
  // dq = dS k, in blocks of so many queries: warps over queries and over dims.
  constexpr int dq_rows() const { return block_m < 64 ? block_m : 64; }
  constexpr int dq_row_warps() const { return head_dim / 8 % (warps / 2 * 2) == 0 ? 2 : 4; }  // dims: pairs of tiles
};

// A key tile's dk and dv stay in registers. `large`: 227 KiB of shared memory (compute capability 9.0), else 163.
// block_n() and dq_rows() don't depend on it. Wide heads: scores of 32 queries per warp instead of 16 need a third
// fewer fragments, but leave room for one tile of q and dout.
constexpr BwdPolicy bwd_policy(int head_dim, Features features, bool large) {
  if (head_dim <= 64) return {head_dim, 4, 1, 32, 2, features, false};
  if (head_dim <= 128) return {head_dim, 8, 2, 64, large || features != Features::kScored ? 2 : 1, features, large};
  if (large && features == Features::kPlain) return {head_dim, 8, 4, 128, 1, features, false};
  return {head_dim, 8, 4, 64, large ? 2 : 1, features, false};
}

// Whether tiles may span sequences.
constexpr bool may_span(const BwdPolicy& policy) {
  return policy.features == Features::kPlain || policy.features == Features::kGeneral;
}

// What is launched, planned and laid out in memory by the host is the same for both sizes of shared memory, and fits.
constexpr bool sizes_agree(int head_dim, Features features) {
  const BwdPolicy large = bwd_policy(head_dim, features, true), small = bwd_policy(head_dim, features, false);
  return large.threads() == small.threads() && large.block_n() == small.block_n() &&
         large.dq_rows() == small.dq_rows() && small.smem_bytes() <= large.smem_bytes() &&
         small.smem_bytes() <= 163 * 1024 && large.smem_bytes() <= 227 * 1024;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kLargeSmem = false;
#else
inline constexpr bool kLargeSmem = true;  // the host asks starts_early() which of the two the code is for
#endif

}  // namespace xformers::cuda::sm80
