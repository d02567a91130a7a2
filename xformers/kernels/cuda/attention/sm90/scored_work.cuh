// What a tile's scores are changed by: what the producer's first warp finds out where there may be a bias, dropout or
// ALiBi.
#pragma once

#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm90/ring.cuh"

namespace xformers::cuda::sm90 {

struct ScoredWork {
  RowsPlace bias;
  uint32_t drop_head;  // what the stream of dropout takes for the head
  float slope;         // of ALiBi
  int alibi_shift;
};
__device__ __forceinline__ ScoredWork scored_work(const AttentionProblem& p, const HeadTile& tile, int first_query) {
  const bool tilts = p.mods.alibi_slopes.data != nullptr;
  return {rows_place(p.mods.bias, tile, first_query), tile.drop_head(p.shape),
          tilts ? number_at<float>(p.mods.alibi_slopes, tile.sequence.index, tile.group, tile.head) : 0.0f,
          alibi_shift(p.band, tile.sequence)};
}

}  // namespace xformers::cuda::sm90
