// Which tiles of keys a block works on, one after the other (tile_count.cuh).
//
// A few heads at a time, so that what their tiles read and add to stays in L2; tile after tile of all of them, from the
// beginning: with causal masks the long ones come first. Queries from the end: those of sums in an order (turns.cuh)
// then wait for a step or two alone, where tiles are taken in the order in which they begin.
#pragma once

#include "xformers/kernels/cuda/attention/dq_sums.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/sm90/bwd_grid.h"
#include "xformers/kernels/cuda/attention/sm90/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm90/ring.cuh"
#include "xformers/kernels/cuda/attention/sm90/tile_count.cuh"

namespace xformers::cuda::sm90 {

// What the producer's first warp finds out about a tile, for all.
struct BwdWork {
  HeadTile tile;  // of keys; rows <= 0: there are no more
  Band band;
  Range blocks;        // of block_m queries that see any of the keys
  int head_of_all;     // batch * num_heads + head
  int index;           // of the head's tiles
  int64_t statistics;  // where the first query is in lse and delta
  int64_t dq_block;    // and in dq_sum
  RowsPlace q, k, v, dout;
};

class KeyTileOrder {
 public:
  __device__ __forceinline__ KeyTileOrder(const BwdGrid& args, int* counter) : args_(args), count_(counter) {}

  // By all lanes of one warp: the next tile, written by the first lane. False: it has no keys, look again.
  template <int kPolicyIndex>
  __device__ __forceinline__ bool next(BwdWork& work) {
    constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
    const AttentionBwdParams& p = args_.p;
    const AttentionShape& shape = p.shape;
    const bool writes = threadIdx.x % 32 == 0;
    const int index = count_.next();
    if (index >= args_.all_tiles) {
      if (writes) work.tile.rows = 0;
      return true;
    }
    const int tiles = static_cast<int>(args_.tiles), at_once = args_.heads_at_once;
    const int first_head = index / (at_once * tiles) * at_once, heads = min(at_once, args_.heads - first_head);
    const int rest = index - first_head * tiles, head = first_head + rest % heads;
    const int per_group = static_cast<int>(shape.heads_per_group), groups = static_cast<int>(shape.num_groups),
              group = head / per_group;
    const RowTile keys = key_tile(shape, p.seq, group / groups, rest / heads, kPolicy.kBlockN);
    if (keys.rows <= 0) {
      if (kPolicy.has_dk() && writes) {
        tile_is_done(args_, head);
        if (kPolicy.scored && args_.slope_parts) slope_part(args_, head, rest / heads) = {};
      }
      return false;
    }
    if (!writes) return true;
    work.tile = {keys.sequence, group % groups, head % per_group, keys.first, keys.rows};
    work.band = Band(p.band, keys.sequence);
    const Range queries = work.band.query_range({keys.first, keys.first + keys.rows});
    work.blocks =
        queries.empty() ? Range{0, 0} : Range{queries.begin / kPolicy.block_m, ceil_div(queries.end, kPolicy.block_m)};
    work.head_of_all = head;
    work.index = rest / heads;
    work.statistics = head * shape.seqlen_q + keys.sequence.q_begin;
    work.dq_block = head * args_.query_blocks + first_query_block(p.seq, keys.sequence, kPolicy.block_m);
    work.q = rows_place(p.q, work.tile, keys.sequence.q_begin);
    work.dout = rows_place(p.dout, work.tile, keys.sequence.q_begin);
    work.k = rows_place(p.k, work.tile, keys.sequence.k_begin + keys.first);
    work.v = rows_place(p.v, work.tile, keys.sequence.k_begin + keys.first);
    return true;
  }

 private:
  const BwdGrid& args_;
  TileCount count_;
};

}  // namespace xformers::cuda::sm90
