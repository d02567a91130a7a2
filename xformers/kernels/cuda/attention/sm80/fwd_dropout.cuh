// Dropout of a warp's probabilities: one Philox call gives the eight draws of what a lane holds of a row in 32 keys.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"

namespace xformers::cuda::sm80 {

// Two draws of 16 bits -> two masks of 16 bits: all ones where draw >= threshold. `threshold` holds the number twice.
__device__ __forceinline__ uint32_t keep_mask(uint32_t draws, uint32_t threshold) {
  // Compares the low 15 bits of both halves at once: no borrow crosses the set bits.
  const uint32_t at_least = (draws | 0x80008000u) - (threshold & 0x7fff7fffu);
  const uint32_t kept = (draws & ~threshold) | (~(draws ^ threshold) & at_least);  // in bits 15 and 31
  uint32_t mask;
  asm("prmt.b32 %0, %1, 0, 0xbb99;\n" : "=r"(mask) : "r"(kept));  // each half: its sign, 16 times
  return mask;
}

// The probabilities of 32 keys, two operands of 16 from `p` on. `key`: the first one, a multiple of 32.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void drop(uint32_t (*p)[kPolicy.row_tiles][4], const FwdGrid& args, const FwdTile& tile,
                                     const WarpPart<kPolicy>& warp, int key) {
  static_assert(kPolicy.warp_keys() % 32 == 0);
  const PhiloxKey philox = tile.philox;
  const uint32_t threshold = tile.drop_below;
  const auto first_head =
      static_cast<uint32_t>(tile.sequence.index * args.p.shape.num_heads() + tile.group * args.p.shape.heads_per_group);
#pragma unroll
  for (int r = 0; r < kPolicy.row_tiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.first_row + warp.lane_row(r, half);
      const auto query = static_cast<uint32_t>(query_of(args, row));
      const auto head = first_head + static_cast<uint32_t>(head_of(args, tile, row));
      const PhiloxWords words = attention_draws(philox, head, query, static_cast<uint32_t>(key) / 32, threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i / 2][r][i % 2 * 2 + half] &= keep_mask(words.word[i], threshold);
    }
  }
}

}  // namespace xformers::cuda::sm80
