// Sizes of the decode kernel: chosen on the host, handed to the kernel as one template argument.
#pragma once

#include "xformers/kernels/cuda/attention/fwd_args.h"

namespace xformers::cuda::decode {

inline constexpr int kRows = 16;  // (query, head) pairs of one tile

struct DecodePolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int keys;    // of a stage
  int stages;  // of each warp's own ring

  constexpr int threads() const { return 32 * warps; }
  constexpr int step() const { return warps * keys; }         // keys that a block takes at once
  constexpr bool shares_q() const { return head_dim > 128; }  // Q in shared memory: registers don't hold it
};
inline constexpr int kBlocksPerMultiprocessor = 2;

// 96 KiB on their way per block: memory has about a microsecond to answer, in which a multiprocessor of an H200 could
// take 36 KiB.
constexpr DecodePolicy decode_policy(int head_dim) {
  if (head_dim <= 64) return {head_dim, 4, 32, 3};
  if (head_dim <= 128) return {head_dim, 4, 16, 3};
  return {head_dim, 2, 16, 3};
}

// Shared memory: the warps' rings and Q, and, when all keys have been seen, the warps' results over the rings.
template <DecodePolicy kPolicy>
struct DecodeMemory {
  struct Stage {
    alignas(16) unsigned char k[2 * kPolicy.keys * kPolicy.head_dim], v[2 * kPolicy.keys * kPolicy.head_dim];
  };
  struct Results {
    static constexpr int kStride = kPolicy.head_dim + 8;  // so that neighbouring rows fall on different banks
    float sums[kPolicy.warps][kRows][kStride];
    PartStats stats[kPolicy.warps][kRows], block_stats[kRows];
  };
  union {
    alignas(128) Stage rings[kPolicy.warps][kPolicy.stages];
    Results results;
  };
  alignas(
      16) unsigned char q[kPolicy.shares_q() ? 2 * kRows * kPolicy.head_dim : 16];  // fragments [dims / 16][lanes][4]
};

constexpr int decode_smem_bytes(int head_dim) {
  if (head_dim <= 64) return sizeof(DecodeMemory<decode_policy(64)>);
  if (head_dim <= 128) return sizeof(DecodeMemory<decode_policy(128)>);
  return sizeof(DecodeMemory<decode_policy(256)>);
}

}  // namespace xformers::cuda::decode
