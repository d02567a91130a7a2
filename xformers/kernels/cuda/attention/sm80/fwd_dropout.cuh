// Dropout of a warp's probabilities.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"

namespace xformers::cuda::sm80 {

// The probabilities of 32 keys, two operands of 16 from `p` on. `key`: the first one, a multiple of 32. Where there is
// dropout, a row is a query (packed_heads).
template <FwdPolicy kPolicy>
__device__ __forceinline__ void drop(uint32_t (*p)[kPolicy.row_tiles][4], const FwdGrid& args, const FwdTile& tile,
                                     const WarpPart<kPolicy>& warp, int key) {
  static_assert(kPolicy.warp_keys() % 32 == 0);
  KeptByLane<kPolicy.warp_rows(), false> kept;
#pragma unroll
  for (int i = 0; i < 2; ++i) kept.draw(i, tile.philox, args.drop_rule, tile.drop_head, tile.first_row + warp.row, key);
#pragma unroll
  for (int r = 0; r < kPolicy.row_tiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i / 2][r][i % 2 * 2 + half] &= kept.pair_mask(r * 2 + half, i);
    }
  }
}

}  // namespace xformers::cuda::sm80
