// Scores of one step in a warp's accumulators: S = Q K^T, bias, mask.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_load.cuh"
#include "xformers/kernels/cuda/attention/sm80/operand.cuh"

namespace xformers::cuda::sm80 {

// `meanwhile` is called when the first products are on their way. shown(square): of 16 keys of the step; what isn't
// stays 0.
template <class T, FwdPolicy kPolicy, class Meanwhile, class Shown = EverySquare>
__device__ __forceinline__ void multiply_scores(typename WarpPart<kPolicy>::Scores& s, const WarpPart<kPolicy>& warp,
                                                uint32_t smem_q, uint32_t smem_k, const Meanwhile& meanwhile,
                                                const Shown& shown = {}) {
  using Part = WarpPart<kPolicy>;
  clear<Part::kRowTiles, Part::kKeyTiles>(s);
  const TileOperand<kPolicy.head_dim, Lanes::kRowsFirst> q(smem_q, warp.row);
  const TileOperand<kPolicy.head_dim, Lanes::kChunksFirst> k(smem_k, warp.key());
#pragma unroll
  for (int d = 0; d < kPolicy.head_dim / 16; ++d) {
    uint32_t a[Part::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < Part::kRowTiles; ++r) q.load(a[r], r * 16, d);
#pragma unroll
    for (int n = 0; n < Part::kKeyTiles; n += 2) {
      if (!shown(warp.part * (Part::kKeyTiles / 2) + n / 2)) continue;
      uint32_t b[4];
      k.load(b, n * 8, d);
#pragma unroll
      for (int r = 0; r < Part::kRowTiles; ++r) {
        mma<T>(s[r][n], a[r], b[0], b[1]);
        mma<T>(s[r][n + 1], a[r], b[2], b[3]);
      }
    }
    if (d == 0) meanwhile();
  }
}

// s = scale * s + bias, from the warp's tile of bias: ldmatrix lays it out as an A operand, rows, rows + 8, then the
// next eight keys.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void add_bias(typename WarpPart<kPolicy>::Scores& s, uint32_t smem_bias, float scale) {
  using Part = WarpPart<kPolicy>;
#pragma unroll
  for (int r = 0; r < Part::kRowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < Part::kKeyTiles; n += 2) {
      uint32_t bias[4];
      load_a<kPolicy.warp_keys()>(bias, smem_bias, r * 16, n / 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack<T>(bias[i]);
        float* const at = &s[r][n + i / 2][i % 2 * 2];
        at[0] = biased(at[0], scale, pair.x);
        at[1] = biased(at[1], scale, pair.y);
      }
    }
  }
}

// The same with a bias of any strides, read where it lies; without one, s = scale * s. `key`: the warp's first one.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void add_any_bias(typename WarpPart<kPolicy>::Scores& s, const FwdGrid& args,
                                             const FwdTile& tile, const WarpPart<kPolicy>& warp, int key, float scale) {
  using Part = WarpPart<kPolicy>;
  const ScoreBias& tensor = args.p.mods.bias;
  const TileRows rows = rows_of(args, tile);
  scale_and_add<Part::kRowTiles, Part::kKeyTiles>(
      s, scale, key, tile.sequence.seqlen_k, tensor.k_stride, [&](int of_warp) -> const T* {
        const int row = tile.first + warp.row + of_warp;
        if (!tensor.data || !rows.inside(row)) return nullptr;
        return static_cast<const T*>(tensor.data) +
               tensor.offset(tile.sequence.index, tile.group, rows.head_of(row), rows.query_of(row), 0);
      });
}

}  // namespace xformers::cuda::sm80
