// Online softmax of a warp's rows, some of which two warps share.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm80 {

// What each of two warps knows of their rows: lane j of each four writes one number, and reads the other warp's four.
template <FwdPolicy kPolicy>
struct RowExchange {
  const WarpPart<kPolicy>& warp;
  uint32_t smem;  // one float per row of every warp, where warps share rows

  template <class Combine>
  __device__ __forceinline__ void operator()(RowValues<kPolicy.row_tiles>& mine, const Combine& combine) const {
    static_assert(kPolicy.sharers == 1 || (kPolicy.sharers == 2 && kPolicy.row_tiles == 2));
    if constexpr (kPolicy.sharers == 2) {
      const int lane = threadIdx.x % 32, j = lane % 4;
      const auto place = [&](int of_warp, int r, int half) {
        return smem + 4 * (of_warp * kPolicy.warp_rows() + (r * 2 + half) * 8 + lane / 4);
      };
      const float low = j % 2 ? mine[0][1] : mine[0][0], high = j % 2 ? mine[1][1] : mine[1][0];
      store_shared_4(place(warp.warp, j / 2, j % 2), __float_as_uint(j < 2 ? low : high));
      sync_sharers<kPolicy>(warp);
      for_each_row<kPolicy.row_tiles>([&](int r, int half) {
        mine[r][half] = combine(mine[r][half], __uint_as_float(load_shared_4(place(warp.warp ^ 1, r, half))));
      });
    }
  }
};

}  // namespace xformers::cuda::sm80
