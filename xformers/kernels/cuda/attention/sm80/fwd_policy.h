// Tile sizes of the forward kernel: chosen on the host, handed to the kernel as one template argument.
#pragma once

#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda::sm80 {

struct FwdPolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int row_tiles;  // of 16 rows, per warp
  int block_n;    // keys per step
  Features features;

  constexpr int block_m() const { return 16 * warps * row_tiles; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int bias_bytes() const { return features == Features::kScored ? 2 * block_m() * block_n : 0; }
  constexpr int smem_bytes() const { return 2 * head_dim * (block_m() + 2 * block_n) + bias_bytes(); }
  // Blocks that share a multiprocessor: what the accumulators leave of 64 K registers.
  constexpr int blocks_per_sm() const { return warps == 4 ? 2 : 1; }
};

// Two row tiles per warp use every key and value fragment twice, where the accumulators fit in 255 registers. Measured
// on an H100, bf16, TFLOP/s at S 4096 full and causal:
//   head_dim 64   128 keys per step: 329, 295; 64: 300, 279; 8 warps of one row tile: 261, 239
//   head_dim 128  316, 282; 8 warps of two row tiles: 341, 269 (but 190 at S 1024 causal against 215); of one: 309, 267
//   head_dim 256  8 warps: 296, 259; 4 warps, two blocks a multiprocessor: 202, 184
constexpr FwdPolicy fwd_policy(int head_dim, Features features) {
  if (features == Features::kGeneral) return {head_dim, 4, 1, 64, features};
  if (head_dim <= 64) return {head_dim, 4, 2, 128, features};
  if (head_dim <= 128) return {head_dim, 4, 2, 64, features};
  return {head_dim, 8, 1, 64, features};
}

}  // namespace xformers::cuda::sm80
