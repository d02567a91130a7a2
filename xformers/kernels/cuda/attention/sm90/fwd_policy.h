// Tile sizes of Hopper's forward kernel: data, chosen on the host, handed to the kernel as one number. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/tile_rows.h"

namespace xformers::cuda::sm90 {

// One warpgroup copies, `consumers` others have 64 rows each.
struct FwdPolicy {
  int head_dim, head_dim_v;  // padded to these
  int consumers = 2;
  int block_n = 128;  // keys per step
  int stages = 2;     // of K, and of V
  int q_stages = 1;
  bool near = false;     // probabilities relative to the maximum at hand; looked for anew where they come out large
  bool scored = false;   // bias, dropout, other score modifiers; keys per step then come in 32s
  int bias_stages = 0;   // of a bias, each consumer's by itself
  bool blocked = false;  // a block mask says which steps there are (fwd_blocked.cuh)
  bool turns = true;     // consumers take turns; if not, each of them passes by the steps that its rows don't see

  constexpr int block_m() const { return 64 * consumers; }
  constexpr int threads() const { return 128 * (1 + consumers); }
  // Registers per thread, of 504 (512) for all warpgroups of a block.
  constexpr int producer_registers() const { return consumers == 3 ? 32 : blocked ? 56 : 40; }
  constexpr int consumer_registers() const { return consumers == 3 ? 160 : blocked ? 224 : 232; }
  constexpr int q_bytes() const { return tile_bytes(block_m(), head_dim); }
  constexpr int k_bytes() const { return tile_bytes(block_n, head_dim); }
  constexpr int v_bytes() const { return tile_bytes(block_n, head_dim_v); }
  constexpr int bias_bytes() const { return tile_bytes(64, block_n); }  // of a consumer
};

// Best first; the second of head_dim 64 is for short rows under a band, where tiles of 192 rows are half empty. In
// TFLOP/s on an H200, bf16, 16384 tokens, 2048 = heads x head_dim (docs/design/hopper.md):
inline constexpr FwdPolicy kFwdPolicies[] = {
    {.head_dim = 64, .head_dim_v = 64, .consumers = 3, .stages = 4},   // S 4096 546 (near 534); S 1024 causal 275
    {.head_dim = 64, .head_dim_v = 64, .stages = 4},                   // 442; 290
    {.head_dim = 96, .head_dim_v = 96, .block_n = 160, .near = true},  // 595 (551 if not near)
    {.head_dim = 128, .head_dim_v = 128, .stages = 3, .near = true},   // 725 (698); 176 keys, 2 stages: 675
    {.head_dim = 192, .head_dim_v = 128, .near = true},                // 771 (748)
    {.head_dim = 192, .head_dim_v = 192, .block_n = 112},              // 780 (near 774)
    {.head_dim = 256, .head_dim_v = 256, .block_n = 80},               // 796 (near spills: 598)
    // What changes scores has its own: a bias takes shared memory, dropout registers.
    {.head_dim = 64, .head_dim_v = 64, .stages = 4, .scored = true, .bias_stages = 2},
    {.head_dim = 96, .head_dim_v = 96, .scored = true, .bias_stages = 2},
    {.head_dim = 128, .head_dim_v = 128, .scored = true, .bias_stages = 2},
    {.head_dim = 192, .head_dim_v = 128, .block_n = 96, .scored = true, .bias_stages = 1},
    {.head_dim = 192, .head_dim_v = 192, .block_n = 96, .scored = true, .bias_stages = 1},
    {.head_dim = 256, .head_dim_v = 256, .block_n = 64, .scored = true, .bias_stages = 2},
    // Under a block mask: for blocks that are whole tiles and steps; for any others.
    {.head_dim = 64, .head_dim_v = 64, .stages = 4, .blocked = true},
    {.head_dim = 64, .head_dim_v = 64, .block_n = 64, .stages = 6, .blocked = true, .turns = false},
    {.head_dim = 96, .head_dim_v = 96, .near = true, .blocked = true},
    {.head_dim = 96, .head_dim_v = 96, .block_n = 64, .stages = 5, .near = true, .blocked = true, .turns = false},
    {.head_dim = 128, .head_dim_v = 128, .stages = 3, .near = true, .blocked = true},
    {.head_dim = 128, .head_dim_v = 128, .block_n = 64, .stages = 6, .near = true, .blocked = true, .turns = false},
    {.head_dim = 192, .head_dim_v = 128, .blocked = true},
    {.head_dim = 192, .head_dim_v = 128, .block_n = 64, .stages = 4, .near = true, .blocked = true, .turns = false},
    {.head_dim = 192, .head_dim_v = 192, .block_n = 64, .stages = 3, .blocked = true, .turns = false},
    {.head_dim = 256, .head_dim_v = 256, .block_n = 64, .blocked = true, .turns = false},
};

}  // namespace xformers::cuda::sm90
