// Where a block of the decode kernels works: blockIdx.x counts groups within tiles of rows, so that blocks that run
// together read neighbouring memory.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/decode/decode_policy.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda::decode {

struct DecodeTile {
  int64_t slot;
  Sequence sequence;
  int group, first_head;  // first_head: of the group; all its heads if packed
  int first_row, rows;    // of the sequence's seqlen_q * packed_heads; rows <= 0: there is no tile
};

__device__ __forceinline__ DecodeTile decode_tile(const FwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  DecodeTile tile;
  int64_t index = blockIdx.x;
  if (args.packed_heads > 1) {
    tile.first_head = 0;
  } else {
    tile.first_head = static_cast<int>(index % shape.heads_per_group);
    index /= shape.heads_per_group;
  }
  tile.group = static_cast<int>(index % shape.num_groups);
  tile.slot = index /= shape.num_groups;
  const int64_t sequence = args.p.seq.packed() ? 0 : index / args.tiles;
  const RowTile rows = query_tile(shape, args.p.seq, sequence, index - sequence * args.tiles, kRows, args.packed_heads);
  tile.sequence = rows.sequence;
  tile.first_row = rows.first;
  tile.rows = rows.rows;
  return tile;
}

struct RowPlace {
  int64_t query;  // in the batch row
  int head;       // of the group
};
__device__ __forceinline__ RowPlace place_of(const FwdArgs& args, const DecodeTile& tile, int row) {
  const int at = tile.first_row + row;
  if (args.packed_heads == 1) return {tile.sequence.q_begin + at, tile.first_head};
  return {tile.sequence.q_begin + at / args.packed_heads, at % args.packed_heads};
}

// Row of one split's partial results.
__device__ __forceinline__ int64_t partial_row(const FwdArgs& args, const DecodeTile& tile, const RowPlace& place) {
  const AttentionShape& s = args.p.shape;
  return ((tile.sequence.batch * s.num_groups + tile.group) * s.heads_per_group + place.head) * s.seqlen_q +
         place.query;
}

template <class Out>
__device__ __forceinline__ Out* out_row(const FwdArgs& args, const DecodeTile& tile, const RowPlace& place) {
  const HeadsTensor& t = args.p.out;
  return static_cast<Out*>(t.data) + tile.sequence.batch * t.batch_stride + place.query * t.seq_stride +
         tile.group * t.group_stride + place.head * t.head_stride;
}

// A pair of neighbouring results.
template <class Out>
__device__ __forceinline__ void store_pair(Out* row, int at, int dim, float x, float y, bool aligned) {
  if (aligned && at + 1 < dim) {
    if constexpr (std::is_same_v<Out, float>) {
      *reinterpret_cast<float2*>(row + at) = {x, y};
    } else {
      *reinterpret_cast<uint32_t*>(row + at) = pack<Out>(x, y);
    }
  } else {
    row[at] = to_element<Out>(x);
    if (at + 1 < dim) row[at + 1] = to_element<Out>(y);
  }
}

}  // namespace xformers::cuda::decode
