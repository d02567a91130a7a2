// Where a block of the backward works, and where its warps do.
#pragma once

#include <climits>

#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_dropout.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80/tile.cuh"

namespace xformers::cuda::sm80 {

struct BwdTile {
  Sequence sequence;
  int group, head;  // of the group
  int head_of_all;  // batch * num_heads + head
  int first_key, keys;
  int index;                    // of the tile, in [0, args.tiles)
  int first_block, last_block;  // blocks of queries that see these keys: [first, last)
  int split;                    // which part of all such blocks
  Band band;
  int64_t q, dout, row, dq_block;  // where the first query is in q, dout, lse and dq_sum
  DropoutState dropout;            // where there is dropout
  RowTilt tilt;                    // of key 0, where there is ALiBi
};

// The tile of index `tile` of a head of all; keys are 0 where there is none.
template <int kBlockN>
__device__ __forceinline__ BwdTile bwd_tile_at(const BwdArgs& args, int head_of_all, int tile) {
  BwdTile result;
  const AttentionShape& shape = args.p.shape;
  const int heads = static_cast<int>(shape.num_heads()), per_group = static_cast<int>(shape.heads_per_group);
  result.head_of_all = head_of_all;
  result.index = tile;
  result.group = head_of_all % heads / per_group;
  result.head = head_of_all % per_group;
  const RowTile keys = key_tile(shape, args.p.seq, head_of_all / heads, tile, kBlockN);
  result.sequence = keys.sequence;
  result.first_key = keys.first;
  result.keys = keys.rows;
  return result;
}

// Blocks go over the parts of a tile's queries, a few heads, their tiles, and the other heads. So the heads at work fit
// in the L2 cache, and where masks leave the last tiles little work, they come last. A tile of a head comes after those
// before it, which the deterministic mode relies on.
struct BlockPlace {
  int head_of_all, tile, split;
};
__device__ __forceinline__ BlockPlace block_place(const BwdArgs& args) {
  const auto splits = static_cast<unsigned>(args.splits), at_once = static_cast<unsigned>(args.heads_at_once);
  const auto tiles = static_cast<unsigned>(args.tiles);
  const auto all = static_cast<unsigned>(args.p.shape.batch * args.p.shape.num_heads());
  const unsigned split = blockIdx.x % splits, index = blockIdx.x / splits;
  const unsigned first_head = index / (at_once * tiles) * at_once, heads = min(at_once, all - first_head);
  const unsigned rest = index - first_head * tiles;
  return {static_cast<int>(first_head + rest % heads), static_cast<int>(rest / heads), static_cast<int>(split)};
}

// Where a tile, or its part of the queries, leaves its part of the gradient of a slope.
__device__ __forceinline__ SlopePart& slope_part(const BwdArgs& args, const BlockPlace& place) {
  return args.slope_parts[place.head_of_all * args.slope_parts_per_head + place.tile * args.splits + place.split];
}

__device__ __forceinline__ int64_t heads_offset(const HeadsTensor& tensor, const BwdTile& tile) {
  return tile.sequence.batch * tensor.batch_stride + tile.group * tensor.group_stride + tile.head * tensor.head_stride;
}

// Where everything lies in shared memory. Numbers of 16 bits are in tiles (tile.cuh).
template <BwdPolicy kPolicy>
struct BwdShared {
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n();
  alignas(128) unsigned char k[kPolicy.tile_bytes(kBlockN)], v[kPolicy.tile_bytes(kBlockN)];
  unsigned char q[kPolicy.stages][kPolicy.tile_bytes(kBlockM)], dout[kPolicy.stages][kPolicy.tile_bytes(kBlockM)];
  // [ds_tiles] dS^T, (P^T where warps share keys), ([stages] bias)
  unsigned char scores[kPolicy.score_tiles() * kPolicy.scores_bytes() + kPolicy.bias_bytes()];
  float statistics[kPolicy.stages][2][kBlockM];  // lse, delta
  // Where tiles span sequences: queries that see a key of the tile, and that see all of a warp's 32; of the last four
  // blocks of queries, the tiles whose keys these see.
  Range key_queries[kBlockN], warp_queries[kBlockN / 32], block_tiles[4][kBlockM / kPolicy.dq_rows()];
  float warp_extremes[kPolicy.warps][3];  // of lse, dout (RowExtremes) and v
  bool large_rows;                        // whether any row may want exact scores (has_large_rows)
  bool may_overflow;                      // fp16: whether any dS may be beyond its range (ds_range.cuh)
  float ds_factors[2], dk_factor;         // then: of dS of the last two steps; of dk's sums
  BwdTile tile;                           // not in registers

  // The walk of a block mask, where it is the tile's sequence that has one: tiles with a mask don't span sequences.
  using Walk = BlockWalk<LinesOf::kKeys, kBlockN / kSquare, kBlockM / kSquare>;
  __device__ __forceinline__ Walk& walk() {
    static_assert(!kPolicy.features.blocked() || sizeof(Walk) <= sizeof(key_queries));
    return reinterpret_cast<Walk&>(key_queries);
  }
  __device__ __forceinline__ const Walk& walk() const { return reinterpret_cast<const Walk&>(key_queries); }
  // And of how many parts of a long tile this one is.
  struct Share {
    int parts, place;  // as of LongPart
    bool last;         // the others are done
  };
  __device__ __forceinline__ Share& share() {
    static_assert(sizeof(Share) <= sizeof(block_tiles));
    return reinterpret_cast<Share&>(block_tiles);
  }
};

// key_queries and warp_queries; returns the queries that see any of the tile's keys.
template <BwdPolicy kPolicy>
__device__ __forceinline__ Range find_key_queries(const BwdArgs& args, const BwdTile& tile,
                                                  BwdShared<kPolicy>& shared) {
  static_assert(kPolicy.block_n() <= kPolicy.threads());
  const int at = threadIdx.x;
  if (at < kPolicy.block_n()) {
    const Range queries = at < tile.keys ? args.key_queries[tile.first_key + at] : Range{0, 0};
    shared.key_queries[at] = queries;
    const Range all = {__reduce_max_sync(kAllLanes, queries.begin), __reduce_min_sync(kAllLanes, queries.end)};
    if (at % 32 == 0) shared.warp_queries[at / 32] = all;
  }
  __syncthreads();
  Range any = {INT_MAX, 0};
#pragma unroll
  for (int i = 0; i < kPolicy.block_n(); i += 32) {
    const Range one = shared.key_queries[i + threadIdx.x % 32];
    if (!one.empty()) any = {min(any.begin, one.begin), max(any.end, one.end)};
  }
  any = {__reduce_min_sync(kAllLanes, any.begin), __reduce_max_sync(kAllLanes, any.end)};
  return any.empty() ? Range{0, 0} : any;
}

// A split's part of the blocks of queries that see the tile's keys, and where these queries are.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void find_queries(const BwdArgs& args, int split, int splits, BwdTile& tile,
                                             BwdShared<kPolicy>& shared) {
  const AttentionBwdParams& p = args.p;
  tile.band = Band(p.band, tile.sequence);
  const Range queries = may_span(kPolicy) && args.key_queries
                            ? find_key_queries(args, tile, shared)
                            : tile.band.query_range({tile.first_key, tile.first_key + tile.keys});
  constexpr int kBlockM = kPolicy.block_m;
  const int first = queries.begin / kBlockM, last = queries.empty() ? first : ceil_div(queries.end, kBlockM);
  const int share = ceil_div(last - first, splits);
  tile.split = split;
  tile.first_block = first + split * share;
  tile.last_block = min(last, tile.first_block + share);
  tile.q = heads_offset(p.q, tile) + tile.sequence.q_begin * p.q.seq_stride;
  tile.dout = heads_offset(p.dout, tile) + tile.sequence.q_begin * p.dout.seq_stride;
  tile.row = tile.head_of_all * p.shape.seqlen_q + tile.sequence.q_begin;
  if (p.dropout.p > 0) {
    tile.dropout = {dropout_key(p.dropout), static_cast<uint32_t>(tile.sequence.index * p.shape.num_heads() +
                                                                  tile.head_of_all % p.shape.num_heads())};
  }
  if (kPolicy.features.may(kAlibiOp) && p.mods.alibi_slopes.data) {
    tile.tilt = tilt_of_key(p, tile.sequence, tile.group, tile.head, 0);
  }
  tile.dq_block = tile.head_of_all * args.query_blocks + first_query_block(p.seq, tile.sequence, kPolicy.dq_rows());
}

// The lane, for products that end in scores and in sums: read anew where addresses made of it would fill registers
// across the loop over queries.
template <BwdPolicy kPolicy>
__device__ __forceinline__ int lane_of_scores() {
  if constexpr (kPolicy.head_dim > 128 || kPolicy.stages == 1) return thread_again() % 32;
  return threadIdx.x % 32;
}
template <BwdPolicy kPolicy>
__device__ __forceinline__ int lane_of_sums() {
  if constexpr (kPolicy.features != Features::kPlain) return thread_again() % 32;
  return lane_of_scores<kPolicy>();
}

// A warp's part of the tile.
template <BwdPolicy kPolicy>
struct BwdWarp {
  static constexpr int kDim = kPolicy.head_dim, kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n();
  static constexpr int kThreads = kPolicy.threads(), kSharing = kPolicy.sharing, kKeyTiles = kPolicy.kKeyTiles;
  static constexpr int kKeys = 16 * kKeyTiles;
  static constexpr int kQueries = kBlockM / kSharing, kQueryTiles = kQueries / 8;  // of its scores
  static constexpr int kDims = kDim / kSharing, kDimTiles = kDims / 8;             // of its dk and dv
  static_assert(kQueryTiles % 2 == 0 && kDimTiles % 2 == 0);
  static constexpr int kSquares = kQueries / kSquare;  // of its scores, along queries

  using Scores = Fragment<kKeyTiles, kQueryTiles>;     // [keys, queries]
  using Packed = uint32_t[kKeyTiles][kQueryTiles][2];  // the same in 16 bits, two queries per register
  using Sums = Fragment<kKeyTiles, kDimTiles>;         // [keys, dims]

  int key, query, chunk2;  // the first ones; of pairs of chunks of dims
  __device__ __forceinline__ BwdWarp() {
    // Warps w and w + 4, which have one scheduler, differ in their keys where two share these, else in their part.
    constexpr int kKeyWarps = kPolicy.warps / kSharing;
    const int warp = threadIdx.x / 32, part = kSharing == 2 ? warp % 2 : warp / kKeyWarps;
    key = (kSharing == 2 ? warp / 2 : warp % kKeyWarps) * kKeys;
    query = part * kQueries;
    chunk2 = part * (kDims / 16);
  }
};

// Of a block mask's step, the squares of queries that any of a warp's keys sees, the lowest bit first, and those that
// all of them see whole. `turn`: of the walk.
template <BwdPolicy kPolicy>
struct WarpSquares {
  uint32_t some = ~0u, all = ~0u;

  __device__ __forceinline__ void find(const BwdShared<kPolicy>& shared, const BwdWarp<kPolicy>& warp, int turn) {
    static_assert(kPolicy.kKeyTiles == 2);
    const auto& step = shared.walk().at(turn);
    const int line = warp.key / kSquare;
    some = step.seen[line] | step.seen[line + 1];
    all = step.seen[line] & step.seen[line + 1] & ~(uint32_t{step.partial[line]} | step.partial[line + 1]);
  }
  __device__ __forceinline__ bool operator()(int square) const { return some >> square & 1; }
  // Some key sees something of each of them: products have nothing to skip.
  __device__ __forceinline__ bool every() const {
    constexpr uint32_t kAll = all_squares(kPolicy.block_m / kSquare);
    return (some & kAll) == kAll;
  }
  // Of the queries of the warp's scores.
  __device__ __forceinline__ bool none(const BwdWarp<kPolicy>& warp) const { return own(some, warp) == 0; }
  __device__ __forceinline__ bool is_full(const BwdWarp<kPolicy>& warp) const {
    return own(all, warp) == all_squares(BwdWarp<kPolicy>::kSquares);
  }

 private:
  static __device__ __forceinline__ uint32_t own(uint32_t squares, const BwdWarp<kPolicy>& warp) {
    return squares >> warp.query / kSquare & all_squares(BwdWarp<kPolicy>::kSquares);
  }
};

}  // namespace xformers::cuda::sm80
