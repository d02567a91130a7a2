// Where a block of the decode kernels works: blockIdx.x counts groups within tiles of rows, so that blocks that run
// together read neighbouring memory.
#pragma once

#include "xformers/kernels/cuda/attention/decode/decode_policy.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/rows.cuh"

namespace xformers::cuda::decode {

struct DecodeTile : HeadTile {
  int64_t slot;
};

__device__ __forceinline__ DecodeTile decode_tile(const FwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  const int packed_heads = static_cast<int>(args.packed_heads.size());
  DecodeTile tile;
  int64_t index = blockIdx.x;
  if (packed_heads > 1) {
    tile.head = 0;
  } else {
    tile.head = static_cast<int>(index % shape.heads_per_group);
    index /= shape.heads_per_group;
  }
  tile.group = static_cast<int>(index % shape.num_groups);
  tile.slot = index /= shape.num_groups;
  const int64_t sequence = args.p.seq.packed() ? 0 : index / args.tiles;
  const RowTile rows = query_tile(shape, args.p.seq, sequence, index - sequence * args.tiles, kRows, packed_heads);
  tile.sequence = rows.sequence;
  tile.first = rows.first;
  tile.rows = rows.rows;
  return tile;
}

}  // namespace xformers::cuda::decode
