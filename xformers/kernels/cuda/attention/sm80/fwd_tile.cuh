// Where a block and a warp of the forward kernel work. A row is a (query, head) pair: the heads of a group that share K
// and V lie side by side in one tile, row = query * packed_heads + head.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/key_walk.cuh"
#include "xformers/kernels/cuda/attention/rows.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda::sm80 {

// The kernel's argument. A few heads at a time (`bundle`: so many that their K and V stay in L2), tile after tile of
// all of them, from the end: with causal masks the long ones come first and the short ones fill the gaps that are left.
//   block index = (bundle index * tiles + tiles - 1 - tile) * bundle + head in bundle
//   head = (sequence * groups + group) * heads + head; without `heads` or `sequence` where these are packed
struct FwdGrid : FwdArgs {
  ScoreUnit unit;  // of products of q and k
  Divisor<uint32_t> by_bundle, by_tiles, by_heads, by_groups;

  FwdGrid(const FwdArgs& args, int bundle)
      : FwdArgs(args),
        unit(static_cast<float>(args.p.softmax_scale), args.scale_log2),
        by_bundle(bundle),
        by_tiles(std::max<int64_t>(args.tiles, 1)),  // 0: of an empty grid
        by_heads(args.packed_heads.size() > 1 ? 1 : std::max<int64_t>(args.p.shape.heads_per_group, 1)),
        by_groups(std::max<int64_t>(args.p.shape.num_groups, 1)) {}
};

struct FwdTile : HeadTile {
  int64_t k_origin, v_origin, bias_origin;  // of batch row, group and first head
  Band band;
  Range blocks, full;    // of block_n keys; those that all block_m rows see
  PhiloxKey philox;      // where there is dropout
  uint32_t stream_head;  // what the stream takes for the head
};

__device__ __forceinline__ TileRows rows_of(const FwdGrid& args, const HeadTile& tile) {
  return {tile, args.packed_heads};
}

// Finds out the thread block's group and heads. What is left: which row tile, of which batch row.
struct FwdPlace {
  int row_tile;
  int64_t batch;
};
__device__ __forceinline__ FwdPlace take_place(FwdTile& tile, const FwdGrid& args) {
  const auto [turn, in_bundle] = args.by_bundle.divide(blockIdx.x);
  const auto [bundle, from_end] = args.by_tiles.divide(turn);
  const auto [group, head] = args.by_heads.divide(bundle * args.by_bundle.size() + in_bundle);
  const auto [batch, in_batch] = args.by_groups.divide(group);
  tile.head = static_cast<int>(head), tile.group = static_cast<int>(in_batch);
  return {static_cast<int>(args.tiles) - 1 - static_cast<int>(from_end), batch};
}

// The rest of a tile whose group, heads, sequence and rows are known.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void complete(FwdTile& tile, const FwdGrid& args) {
  const Range queries = rows_of(args, tile).queries();
  tile.k_origin = tile.offset(args.p.k), tile.v_origin = tile.offset(args.p.v);
  tile.bias_origin = tile.offset(args.p.mods.bias);
  tile.band = Band(args.p.band, tile.sequence);
  tile.blocks = blocks_with(tile.band.key_range(queries), kPolicy.block_n);
  if (args.out_partial) {
    tile.blocks = part_of(tile.blocks, static_cast<int>(blockIdx.y), args.num_splits, args.part_steps);
  }
  tile.full = {0, 0};
  if (tile.rows == kPolicy.block_m()) tile.full = blocks_inside(tile.band.full_range(queries), kPolicy.block_n);
  if (kPolicy.features.may(kDropoutOp) && args.p.dropout.p > 0) {
    tile.philox = dropout_key(args.p.dropout);
    tile.stream_head = tile.drop_head(args.p.shape);
  }
}

template <FwdPolicy kPolicy>
__device__ __forceinline__ FwdTile fwd_tile(const FwdGrid& args) {
  FwdTile tile;
  const FwdPlace place = take_place(tile, args);
  const RowTile rows = query_tile(args.p.shape, args.p.seq, place.batch, place.row_tile, kPolicy.block_m(),
                                  static_cast<int>(args.packed_heads.size()));
  tile.sequence = rows.sequence;
  tile.first = rows.first;
  tile.rows = rows.rows;
  if (tile.rows > 0) complete<kPolicy>(tile, args);
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

// ALiBi's slope and diagonal of each row of a tile, in shared memory.
template <FwdPolicy kPolicy>
struct FwdTilts {
  RowTilt rows[kPolicy.tilts() ? kPolicy.block_m() : 1];

  // By all threads; the caller synchronises.
  __device__ __forceinline__ void find(const FwdGrid& args, const FwdTile& tile) {
    for (int row = threadIdx.x; row < kPolicy.block_m(); row += kPolicy.threads()) {
      const TileRows all = rows_of(args, tile);
      const int at = tile.first + min(row, tile.rows - 1);
      rows[row] = tilt_of_query(args.p, tile.sequence, tile.group, all.head_of(at), all.query_of(at));
    }
  }
};

// What a warp's rows see of a tile of one sequence, worked out anew where it is asked for: blocks of keys that any of
// them sees, keys that all of them see, and one row's.
template <FwdPolicy kPolicy>
struct SequenceSight {
  const FwdGrid& args;
  const FwdTile& tile;

  __device__ __forceinline__ bool sees(const WarpPart<kPolicy>& warp, int block) const {
    if (warp.row >= tile.rows) return false;
    const Range queries = of(warp), blocks = tile.blocks;
    const int first =
        clamp_to(tile.band.first_key(queries.begin) / kPolicy.block_n, blocks.begin, max(blocks.begin, blocks.end));
    return block >= first && block < min(tile.band.last_key(queries.end - 1) / kPolicy.block_n + 1, blocks.end);
  }
  __device__ __forceinline__ Range full(const WarpPart<kPolicy>& warp) const {
    return warp.row >= tile.rows ? Range{0, 0} : tile.band.full_range(of(warp));
  }
  __device__ __forceinline__ Range visible(const WarpPart<kPolicy>& warp, int row) const {
    return visible_keys(tile.band, rows_of(args, tile).query_of(tile.first + warp.row + row));
  }

 private:
  __device__ __forceinline__ Range of(const WarpPart<kPolicy>& warp) const {
    return rows_of(args, tile).queries(tile.first + warp.row, kPolicy.warp_rows());
  }
};

// Warps that share rows: a barrier for them alone, and memory where each finds the other's data.
template <FwdPolicy kPolicy>
__device__ __forceinline__ void sync_sharers(const WarpPart<kPolicy>& warp) {
  sync_threads(1 + warp.warp / kPolicy.sharers, 32 * kPolicy.sharers);
}

}  // namespace xformers::cuda::sm80
