// Tile sizes of Hopper's backward kernel: data, chosen on the host, handed to the kernel as one number. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/tile_rows.h"

namespace xformers::cuda::sm90 {

// One warpgroup copies, two others have 64 keys of a tile each.
struct BwdPolicy {
  int head_dim;        // both are padded to it
  int block_m;         // queries per step
  int registers;       // of a thread that multiplies; those of one that copies have what is left of 168 each
  int stages = 2;      // of Q, and of dO
  int key_stages = 2;  // of K, and of V: the next tile's arrive while this one is worked on

  static constexpr int kConsumers = 2, kBlockN = 64 * kConsumers;

  constexpr int threads() const { return 128 * (1 + kConsumers); }
  constexpr int producer_registers() const { return 3 * 168 - kConsumers * registers; }
  constexpr int query_bytes() const { return tile_bytes(block_m, head_dim); }
  constexpr int key_bytes() const { return tile_bytes(kBlockN, head_dim); }
  constexpr int ds_bytes() const { return tile_bytes(kBlockN, block_m); }
  // dq: consumers part the dims of 64 queries, or the queries of 128.
  constexpr bool parts_dims() const { return block_m == 64; }
};

// Best first.
inline constexpr BwdPolicy kBwdPolicies[] = {
    {.head_dim = 64, .block_m = 128, .registers = 240},
    {.head_dim = 128, .block_m = 64, .registers = 232},
};

constexpr int bwd_policy_of(int head_dim) {
  int index = 0;
  while (kBwdPolicies[index].head_dim != head_dim) ++index;
  return index;
}

}  // namespace xformers::cuda::sm90
