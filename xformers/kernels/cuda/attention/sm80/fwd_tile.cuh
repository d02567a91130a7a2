// Where a block and a warp of the forward kernel work. A row is a (query, head) pair: the heads of a group that share K
// and V lie side by side in one tile, row = query * packed_heads + head.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm80 {

// n / divisor for 0 <= n < 2^31 by one multiplication (Granlund & Montgomery 1994).
struct Divider {
  uint32_t divisor, multiplier, shift = 0;

  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(std::max<int64_t>(by, 1))) {  // 0: of an empty grid
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ __forceinline__ int divide(int n) const {
    const auto wide = static_cast<uint32_t>(n);
    return static_cast<int>((__umulhi(wide, multiplier) + wide) >> shift);
  }
  // n becomes its quotient; returns the remainder.
  __device__ __forceinline__ int split(int& n) const {
    const int quotient = divide(n), rest = n - quotient * static_cast<int>(divisor);
    n = quotient;
    return rest;
  }
};

// The kernel's argument. A few heads at a time (`bundle`: so many that their K and V stay in L2), tile after tile of
// all of them, from the end: with causal masks the long ones come first and the short ones fill the gaps that are left.
//   block index = (bundle index * tiles + tiles - 1 - tile) * bundle + head in bundle
//   head = (sequence * groups + group) * heads + head; without `heads` or `sequence` where these are packed
struct FwdGrid : FwdArgs {
  int bundle;
  ScoreUnit unit;  // of products of q and k
  Divider by_bundle, by_tiles, by_heads, by_groups, by_packed;

  FwdGrid(const FwdArgs& args, int bundle)
      : FwdArgs(args),
        bundle(bundle),
        unit(static_cast<float>(args.p.softmax_scale), args.scale_log2),
        by_bundle(bundle),
        by_tiles(args.tiles),
        by_heads(args.packed_heads > 1 ? 1 : args.p.shape.heads_per_group),
        by_groups(args.p.shape.num_groups),
        by_packed(args.packed_heads) {}
};

struct FwdTile {
  Sequence sequence;
  int group, first_head;                    // of the group; all heads of the group if packed
  int first_row, rows;                      // of the sequence's seqlen_q * packed_heads; rows inside
  int64_t k_origin, v_origin, bias_origin;  // of batch row, group and first head
  Band band;
  Range blocks, full;  // of block_n keys; those that all block_m rows see
  PhiloxKey philox;    // where there is dropout
  uint32_t drop_head;

  __device__ __forceinline__ bool inside(int row) const { return row < first_row + rows; }
};

__device__ __forceinline__ int query_of(const FwdGrid& args, int row) {
  return args.packed_heads == 1 ? row : args.by_packed.divide(row);
}
__device__ __forceinline__ int head_of(const FwdGrid& args, const FwdTile& tile, int row) {
  return args.packed_heads == 1 ? tile.first_head : row - args.by_packed.divide(row) * args.packed_heads;
}
// Of the queries of rows [first, first + rows).
__device__ __forceinline__ Range queries_of(const FwdGrid& args, int first, int rows) {
  return {query_of(args, first), query_of(args, first + rows - 1) + 1};
}

// Blocks of keys that this thread block works on.
template <FwdPolicy kPolicy>
__device__ __forceinline__ Range key_blocks(const FwdGrid& args, const FwdTile& tile) {
  const Range keys = tile.band.key_range(queries_of(args, tile.first_row, tile.rows));
  Range blocks{keys.begin / kPolicy.block_n, ceil_div(keys.end, kPolicy.block_n)};
  if (args.out_partial) {
    const int all = max(blocks.end - blocks.begin, 0);
    const int per_split = args.part_steps > 0 ? args.part_steps : ceil_div(all, args.num_splits);
    const int split = static_cast<int>(blockIdx.y);
    blocks.begin += split * per_split;
    // The last part takes what is left: the host knows a tile's steps but for one.
    if (split + 1 < args.num_splits) blocks.end = min(blocks.end, blocks.begin + per_split);
  }
  return blocks;
}

// Finds out the thread block's group and heads. What is left: which row tile, of which batch row.
struct FwdPlace {
  int row_tile;
  int64_t batch;
};
__device__ __forceinline__ FwdPlace take_place(FwdTile& tile, const FwdGrid& args) {
  int index = static_cast<int>(blockIdx.x);
  const int in_bundle = args.by_bundle.split(index);
  const int row_tile = static_cast<int>(args.tiles) - 1 - args.by_tiles.split(index);
  index = index * args.bundle + in_bundle;
  tile.first_head = args.by_heads.split(index);
  tile.group = args.by_groups.split(index);
  return {row_tile, index};
}

// The rest of a tile whose group, heads, sequence and rows are known.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void complete(FwdTile& tile, const FwdGrid& args) {
  const AttentionShape& shape = args.p.shape;
  const auto origin = [&](const auto& t) {
    return tile.sequence.batch * t.batch_stride + tile.group * t.group_stride + tile.first_head * t.head_stride;
  };
  tile.k_origin = origin(args.p.k), tile.v_origin = origin(args.p.v), tile.bias_origin = origin(args.p.mods.bias);
  tile.band = Band(args.p.band, tile.sequence);
  tile.blocks = key_blocks<kPolicy>(args, tile);
  tile.full = {0, 0};
  if (tile.rows == kPolicy.block_m()) {
    const Range keys = tile.band.full_range(queries_of(args, tile.first_row, tile.rows));
    tile.full = {ceil_div(max(keys.begin, 0), kPolicy.block_n), keys.end / kPolicy.block_n};
  }
  if (kPolicy.features != Features::kPlain && args.p.dropout.p > 0) {
    tile.philox = dropout_key(args.p.dropout);
    tile.drop_head = static_cast<uint32_t>(tile.sequence.index * shape.num_heads() +
                                           tile.group * shape.heads_per_group + tile.first_head);
  }
}

template <FwdPolicy kPolicy>
__device__ __forceinline__ FwdTile fwd_tile(const FwdGrid& args) {
  FwdTile tile;
  const FwdPlace place = take_place(tile, args);
  const RowTile rows =
      query_tile(args.p.shape, args.p.seq, place.batch, place.row_tile, kPolicy.block_m(), args.packed_heads);
  tile.sequence = rows.sequence;
  tile.first_row = rows.first;
  tile.rows = rows.rows;
  if (tile.rows <= 0) return tile;
  complete<kPolicy>(tile, args);
  return tile;
}

// What a warp holds of a step: scores of warp_rows rows and warp_keys keys, outputs of those rows and warp_dims dims.
template <FwdPolicy kPolicy>
struct WarpPart {
  static constexpr int kRowTiles = kPolicy.row_tiles, kKeyTiles = kPolicy.warp_keys() / 8,
                       kDimTiles = kPolicy.warp_dims() / 8;
  using Scores = Fragment<kRowTiles, kKeyTiles>;
  using Output = Fragment<kRowTiles, kDimTiles>;
  using Probabilities = uint32_t[kKeyTiles / 2][kRowTiles][4];  // A operands of 16 keys

  int warp;  // of the block; the same register for all lanes
  int row;   // first one in the tile
  int part;  // which keys and dims

  __device__ __forceinline__ WarpPart() {
    warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    part = warp % kPolicy.sharers;
    row = warp / kPolicy.sharers * kPolicy.warp_rows();
  }
  __device__ __forceinline__ int key() const { return part * kPolicy.warp_keys(); }
  __device__ __forceinline__ int dim() const { return part * kPolicy.warp_dims(); }
  // Row of the tile that this lane holds.
  __device__ __forceinline__ int lane_row(int row_tile, int half) const { return row + cuda::lane_row(row_tile, half); }
};

// What a warp's rows see: its part of the tile's blocks, and the keys that all of them see.
struct WarpKeys {
  Range blocks, full;
  __device__ __forceinline__ bool sees(int block) const { return block >= blocks.begin && block < blocks.end; }
};
template <FwdPolicy kPolicy>
__device__ __forceinline__ WarpKeys warp_keys(const FwdGrid& args, const FwdTile& tile, const WarpPart<kPolicy>& warp) {
  const Range blocks = tile.blocks;
  if (warp.row >= tile.rows) return {{blocks.end, blocks.end}, {0, 0}};
  const Range queries = queries_of(args, tile.first_row + warp.row, kPolicy.warp_rows());
  return {{clamp_to(tile.band.first_key(queries.begin) / kPolicy.block_n, blocks.begin, max(blocks.begin, blocks.end)),
           min(tile.band.last_key(queries.end - 1) / kPolicy.block_n + 1, blocks.end)},
          tile.band.full_range(queries)};
}

// Warps that share rows: a barrier for them alone, and memory where each finds the other's data.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void sync_sharers(const WarpPart<kPolicy>& warp) {
  sync_threads(1 + warp.warp / kPolicy.sharers, 32 * kPolicy.sharers);
}

}  // namespace xformers::cuda::sm80
