// Which rows a forward block works on. A row is a (query, head) pair: heads of a group that share K and V lie side by
// side in one tile.
#pragma once

#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/order.cuh"

namespace xformers::cuda::sm80_fp32 {

struct FwdTile {
  Sequence sequence;
  int group, first_head;  // of the group; all heads of the group if packed
  int first_row, rows;    // of the sequence's seqlen_q * packed_heads; rows inside

  // The first key of these heads in K or V.
  __device__ __forceinline__ const float* first_key(const HeadsTensor& tensor) const {
    return static_cast<const float*>(tensor.data) + sequence.batch * tensor.batch_stride + group * tensor.group_stride +
           first_head * tensor.head_stride + sequence.k_begin * tensor.seq_stride;
  }
};

template <int kBlockM>
__device__ __forceinline__ FwdTile fwd_tile(const FwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  const int packed_heads = args.packed_heads;
  const LaunchPlace place = launch_place(args.tiles, args.heads_at_once);
  const int64_t tile = args.tiles - 1 - place.tile;  // with causal masks, those at the end have most to do
  int64_t index = place.head;
  FwdTile result;
  result.first_head = 0;
  if (packed_heads == 1) {
    result.first_head = static_cast<int>(index % shape.heads_per_group);
    index /= shape.heads_per_group;
  }
  result.group = static_cast<int>(index % shape.num_groups);
  index /= shape.num_groups;
  const RowTile rows = query_tile(shape, args.p.seq, index, tile, kBlockM, packed_heads);
  result.sequence = rows.sequence;
  result.first_row = rows.first;
  result.rows = rows.rows;
  return result;
}

}  // namespace xformers::cuda::sm80_fp32
