// Which tiles a block works on, one after the other (tile_count.cuh).
//
// A few heads at a time, so that their K and V stay in L2; tile after tile of all of them, from the end: with causal
// masks the long ones come first. The shortest tiles of all heads come last, and fill the gaps that long ones leave.
#pragma once

#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_args.h"
#include "xformers/kernels/cuda/attention/sm90/fwd_policy.h"
#include "xformers/kernels/cuda/attention/sm90/ring.cuh"
#include "xformers/kernels/cuda/attention/sm90/tile_count.cuh"

namespace xformers::cuda::sm90 {

// What the producer's first warp finds out about a tile, for all.
struct FwdWork {
  HeadTile tile;  // rows <= 0: there are no more
  Band band;
  Range blocks;  // of block_n keys, that some row sees
  RowsPlace q, k, v;
};

// And where scores are changed.
struct ScoredWork {
  RowsPlace bias;
  uint32_t drop_head;  // what the stream of dropout takes for the head
  float slope;         // of ALiBi
  int alibi_shift;
};
__device__ __forceinline__ ScoredWork scored_work(const FwdGrid& args, const HeadTile& tile) {
  const AttentionFwdParams& p = args.p;
  const bool tilts = p.mods.alibi_slopes.data != nullptr;
  return {rows_place(p.mods.bias, tile, tile.first), tile.drop_head(p.shape),
          tilts ? number_at<float>(p.mods.alibi_slopes, tile.sequence.index, tile.group, tile.head) : 0.0f,
          alibi_shift(p.band, tile.sequence)};
}

class TileOrder {
 public:
  __device__ __forceinline__ explicit TileOrder(const FwdGrid& args) : args_(args), count_(args.next_tile) {}

  // By all lanes of one warp: the next tile, written by the first lane. False: it has no rows, look again.
  template <int kPolicyIndex>
  __device__ __forceinline__ bool next(FwdWork& work) {
    constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
    const AttentionShape& shape = args_.p.shape;
    const bool writes = threadIdx.x % 32 == 0;
    const int index = count_.next();
    if (index >= args_.all_tiles) {
      if (writes) work.tile.rows = 0;
      return true;
    }
    const auto [head, from_start] = head_and_tile(index);
    // Blocks that see everything are the first ones as a rule; under a causal band the last ones see most.
    const int tile =
        kPolicy.blocked && args_.short_tiles == 0 ? static_cast<int>(args_.tiles) - 1 - from_start : from_start;
    const int per_group = static_cast<int>(shape.heads_per_group), groups = static_cast<int>(shape.num_groups),
              group = head / per_group;
    const RowTile rows = query_tile(shape, args_.p.seq, group / groups, tile, kPolicy.block_m());
    if (rows.rows <= 0) return false;
    if (!writes) return true;
    work.tile = {rows.sequence, group % groups, head % per_group, rows.first, rows.rows};
    const Band band(args_.p.band, rows.sequence);
    const Range keys = band.key_range({rows.first, rows.first + rows.rows});
    work.band = band;
    work.blocks = {keys.begin / kPolicy.block_n, ceil_div(keys.end, kPolicy.block_n)};
    work.q = rows_place(args_.p.q, work.tile, rows.sequence.q_begin + rows.first);
    work.k = rows_place(args_.p.k, work.tile, rows.sequence.k_begin);
    work.v = rows_place(args_.p.v, work.tile, rows.sequence.k_begin);
    return true;
  }

 private:
  struct Place {
    int head, tile;
  };
  __device__ __forceinline__ Place head_and_tile(int index) const {
    int tiles = static_cast<int>(args_.tiles) - args_.short_tiles, first = args_.short_tiles;
    if (index >= args_.heads * tiles) index -= args_.heads * tiles, tiles = args_.short_tiles, first = 0;
    const int turn = index / args_.bundle, bundle = turn / tiles;
    return {bundle * args_.bundle + index - turn * args_.bundle, first + tiles - 1 - (turn - bundle * tiles)};
  }

  const FwdGrid& args_;
  TileCount count_;
};

}  // namespace xformers::cuda::sm90
