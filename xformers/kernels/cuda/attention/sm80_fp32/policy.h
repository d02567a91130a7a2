// Tile sizes of the fp32 kernels: chosen on the host, used by the kernels and their launches.
#pragma once

namespace xformers::cuda::sm80_fp32 {

struct FwdPolicy {
  int head_dim;       // both head dims are padded to it
  int row_tiles;      // of 16 rows, per warp
  int block_n;        // keys per step
  int blocks_per_sm;  // what registers and shared memory allow
  bool scored;        // a bias, dropout, any softmax_scale

  static constexpr int kWarps = 4;

  constexpr int block_m() const { return 16 * kWarps * row_tiles; }
  constexpr int threads() const { return 32 * kWarps; }
  constexpr int rows_offset() const { return 4 * head_dim * (block_m() + 2 * block_n); }
  constexpr int ratios_offset() const { return rows_offset() + 4 * 2 * row_tiles * threads(); }
  constexpr int smem_bytes() const { return ratios_offset() + 4 * (block_m() + 2 * block_n); }
};

// Measured on an H200, TFLOP/s at S 4096 full and causal:
//   head_dim 64   32 rows per warp: 66, 59; 16 rows, 64 keys: 61, 54
//   head_dim 128  64 keys: 60, 57; 32 keys and three blocks per multiprocessor: 61, 56
constexpr FwdPolicy fwd_policy(int head_dim, bool scored) {
  if (head_dim <= 64) return {head_dim, 2, 32, 2, scored};
  return {head_dim, 2, 32, 2, scored};
}

struct BwdPolicy {
  int head_dim;
  int warps;    // of 16 keys each
  int block_m;  // queries per step
  int stages;   // tiles of q and dout in shared memory
  int blocks_per_sm;
  bool scored;

  constexpr int block_n() const { return 16 * warps; }
  constexpr int threads() const { return 32 * warps; }
  constexpr int tile_bytes(int rows) const { return 4 * head_dim * rows; }
  constexpr int scores_bytes() const { return 4 * block_n() * block_m; }
  constexpr int rows_offset() const {
    return 2 * tile_bytes(block_n()) + 2 * stages * tile_bytes(block_m) + scores_bytes();
  }
  constexpr int rows_bytes() const { return 4 * (4 * stages * block_m + 2 * block_n() + warps + warps * block_m); }
  constexpr int smem_bytes() const { return rows_offset() + rows_bytes(); }
  // dq = dS k: a warp has 32 dims and as many tiles of 16 queries as there are.
  constexpr int dq_dim_warps() const { return head_dim / 32 < warps ? head_dim / 32 : warps; }
  constexpr int dq_row_warps() const { return warps / dq_dim_warps(); }
  constexpr int dq_row_tiles() const { return block_m / 16 / dq_row_warps(); }
};

//   head_dim 64   two blocks per multiprocessor: 56, 54; three: 56, 53
//   head_dim 128  54, 53; 8 warps in one block, two stages: 49, -
constexpr BwdPolicy bwd_policy(int head_dim, bool scored) {
  if (head_dim <= 64) return {head_dim, 4, 32, 2, 2, scored};
  return {head_dim, 4, 32, 1, 2, scored};
}

}  // namespace xformers::cuda::sm80_fp32
