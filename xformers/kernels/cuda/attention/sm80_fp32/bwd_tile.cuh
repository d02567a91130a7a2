// Which keys a backward block works on.
#pragma once

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/order.cuh"

namespace xformers::cuda::sm80_fp32 {

struct BwdTile {
  Sequence sequence;
  int group, head;  // of the group
  int first_key, keys;

  __device__ __forceinline__ int64_t heads_offset(const HeadsTensor& tensor) const {
    return sequence.batch * tensor.batch_stride + group * tensor.group_stride + head * tensor.head_stride;
  }
};

// What is seldom read again: it would take registers.
struct BwdPlace {
  BwdTile tile;
  Band band;
  Range queries;          // that see any of the keys
  int64_t head;           // of the whole: (batch * num_groups + group) * heads_per_group + head
  const float *q, *dout;  // the first query
};
__device__ __forceinline__ BwdPlace bwd_place(const BwdArgs& args, const BwdTile& tile) {
  const AttentionShape& shape = args.p.shape;
  const Band band(args.p.band, tile.sequence);
  const auto first = [&](const HeadsTensor& tensor) {
    return static_cast<const float*>(tensor.data) + tile.heads_offset(tensor) +
           tile.sequence.q_begin * tensor.seq_stride;
  };
  return {tile,
          band,
          band.query_range({tile.first_key, tile.first_key + tile.keys}),
          (tile.sequence.batch * shape.num_groups + tile.group) * shape.heads_per_group + tile.head,
          first(args.p.q),
          first(args.p.dout)};
}

template <int kBlockN>
__device__ __forceinline__ BwdTile bwd_tile(const BwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  const LaunchPlace place = launch_place(args.tiles, args.heads_at_once);
  const int64_t tile = place.tile;  // with causal masks, those at the beginning have most to do
  int64_t index = place.head;
  BwdTile result;
  result.head = static_cast<int>(index % shape.heads_per_group);
  index /= shape.heads_per_group;
  result.group = static_cast<int>(index % shape.num_groups);
  index /= shape.num_groups;
  const RowTile keys = key_tile(shape, args.p.seq, index, tile, kBlockN);
  result.sequence = keys.sequence;
  result.first_key = keys.first;
  result.keys = keys.rows;
  return result;
}

}  // namespace xformers::cuda::sm80_fp32
