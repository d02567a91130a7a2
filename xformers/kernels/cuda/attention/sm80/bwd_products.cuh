// The backward's products out of shared memory: of transposed scores, and those that end in dk and dv.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_tile.cuh"

namespace xformers::cuda::sm80 {

// scores[keys, queries] = left[keys, dim] right[queries, dim]^T of this warp's part. between(d) comes after slice d:
// other work for the slots that products leave idle. kRolled: short code, for what is rare. shown(square): of 16
// queries of the step; what isn't stays 0.
struct Nothing {
  __device__ __forceinline__ void operator()(int) const {}
};
template <class T, bool kRolled = false, BwdPolicy kPolicy, class Between = Nothing, class Shown = EverySquare>
__device__ __forceinline__ void multiply_transposed(typename BwdWarp<kPolicy>::Scores& scores,
                                                    const BwdWarp<kPolicy>& warp, uint32_t left, uint32_t right,
                                                    const Between& between = {}, const Shown& shown = {}) {
  using Warp = BwdWarp<kPolicy>;
  const int lane = lane_of_scores<kPolicy>();
#pragma unroll(kRolled ? 1 : Warp::kDim / 16)
  for (int d = 0; d < Warp::kDim / 16; ++d) {
    uint32_t a[Warp::kKeyTiles][4];
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k) load_a<Warp::kDim>(a[k], left, warp.key + k * 16, d, lane);
#pragma unroll
    for (int m = 0; m < Warp::kQueryTiles; m += 2) {
      if (!shown(warp.query / kSquare + m / 2)) continue;
      uint32_t b[4];
      load_b<Warp::kDim>(b, right, warp.query + m * 8, d, lane);
#pragma unroll
      for (int k = 0; k < Warp::kKeyTiles; ++k) {
        mma<T>(scores[k][m], a[k], b[0], b[1]);
        mma<T>(scores[k][m + 1], a[k], b[2], b[3]);
      }
    }
    between(d);
  }
}

template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void pack_all(typename BwdWarp<kPolicy>::Packed& to, const BwdWarp<kPolicy>&,
                                         const typename BwdWarp<kPolicy>::Scores& from) {
#pragma unroll
  for (int k = 0; k < BwdWarp<kPolicy>::kKeyTiles; ++k)
#pragma unroll
    for (int m = 0; m < BwdWarp<kPolicy>::kQueryTiles; ++m) {
      to[k][m][0] = pack<T>(from[k][m][0], from[k][m][1]);
      to[k][m][1] = pack<T>(from[k][m][2], from[k][m][3]);
    }
}

// Of dS^T and P^T, [block_n, block_m]. Where there may be a bias, rows of queries are read from dS^T too.
template <BwdPolicy kPolicy>
using ScoreLayout = std::conditional_t<kPolicy.features == Features::kScored, SpreadTileLayout<kPolicy.block_m>,
                                       TileLayout<kPolicy.block_m>>;

// Into a tile [block_n, block_m].
template <BwdPolicy kPolicy>
__device__ __forceinline__ void store_scores(uint32_t to, const BwdWarp<kPolicy>& warp,
                                             const typename BwdWarp<kPolicy>::Packed& from) {
  const int lane = lane_of_scores<kPolicy>();
#pragma unroll
  for (int k = 0; k < BwdWarp<kPolicy>::kKeyTiles; ++k)
#pragma unroll
    for (int m = 0; m < BwdWarp<kPolicy>::kQueryTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp.key + k * 16 + half * 8 + lane / 4, chunk = warp.query / 8 + m;
        store_shared_4(to + ScoreLayout<kPolicy>::offset(row, chunk) + lane % 4 * 4, from[k][m][half]);
      }
}

// acc[keys, dims] += left[keys, queries] right[queries, dims]; `left` in registers. What isn't shown is 0 in `left`.
template <class T, BwdPolicy kPolicy, class Shown>
__device__ __forceinline__ void accumulate(typename BwdWarp<kPolicy>::Sums& acc, const BwdWarp<kPolicy>&,
                                           const typename BwdWarp<kPolicy>::Packed& left, uint32_t right,
                                           const Shown& shown) {
  using Warp = BwdWarp<kPolicy>;
  const int lane = lane_of_sums<kPolicy>();
#pragma unroll
  for (int m = 0; m < Warp::kQueryTiles; m += 2) {
    if (!shown(m / 2)) continue;
#pragma unroll
    for (int d = 0; d < Warp::kDimTiles; d += 2) {
      uint32_t b[4];
      load_b_transposed<Warp::kDim>(b, right, m * 8, d / 2, lane);
#pragma unroll
      for (int k = 0; k < Warp::kKeyTiles; ++k) {
        const uint32_t a[4] = {left[k][m][0], left[k][m][1], left[k][m + 1][0], left[k][m + 1][1]};
        mma<T>(acc[k][d], a, b[0], b[1]);
        mma<T>(acc[k][d + 1], a, b[2], b[3]);
      }
    }
  }
}

// The same with `left`, [block_n, block_m], in shared memory.
template <class T, BwdPolicy kPolicy, class Shown>
__device__ __forceinline__ void accumulate(typename BwdWarp<kPolicy>::Sums& acc, const BwdWarp<kPolicy>& warp,
                                           uint32_t left, uint32_t right, const Shown& shown) {
  using Warp = BwdWarp<kPolicy>;
  const int lane = lane_of_sums<kPolicy>();
#pragma unroll
  for (int m = 0; m < Warp::kBlockM / 16; ++m) {
    if (!shown(m)) continue;
    uint32_t a[Warp::kKeyTiles][4];
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k)
      load_a<Warp::kBlockM, ScoreLayout<kPolicy>>(a[k], left, warp.key + k * 16, m, lane);
#pragma unroll
    for (int d = 0; d < Warp::kDimTiles; d += 2) {
      uint32_t b[4];
      load_b_transposed<Warp::kDim>(b, right, m * 16, warp.chunk2 + d / 2, lane);
#pragma unroll
      for (int k = 0; k < Warp::kKeyTiles; ++k) {
        mma<T>(acc[k][d], a[k], b[0], b[1]);
        mma<T>(acc[k][d + 1], a[k], b[2], b[3]);
      }
    }
  }
}

}  // namespace xformers::cuda::sm80
