// What is left of a row behind its last key: the division by its sum, its log-sum-exp, and where they go.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/rows.cuh"
#include "xformers/kernels/cuda/attention/sink.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda {

// Row of one part's results: [batch, groups, heads, seqlen_q].
__device__ __forceinline__ int64_t partial_row(const AttentionShape& shape, const HeadTile& tile,
                                               const RowPlace& place) {
  return ((tile.sequence.batch * shape.num_groups + tile.group) * shape.heads_per_group + place.head) * shape.seqlen_q +
         place.query;
}

// What is known of the row goes to the merge, where keys are in parts, or becomes the log-sum-exp; `stores`: by one
// lane. Returns what the row's results are multiplied by: what its sink leaves them.
__device__ __forceinline__ float finish_row(const FwdArgs& args, int part, const HeadTile& tile, const RowPlace& place,
                                            const PartStats& stats, bool stores) {
  if (args.out_partial) {
    if (stores) args.stats_partial[part * args.total_rows + partial_row(args.p.shape, tile, place)] = stats;
    return 1;
  }
  if (!args.p.mods.sinks.data && !stores) return 1;
  const auto [lse, kept] = end_row(args.p, tile.sequence.index, tile.group, place.head, stats.row_max, stats.row_sum);
  if (stores) store_lse(args.p, lse, tile.sequence.batch, tile.group, place.head, place.query);
  return kept;
}

// Dim 0 of a row of results.
template <class Out>
__device__ __forceinline__ Out* out_row(const HeadsTensor& out, const HeadTile& tile, const RowPlace& place) {
  return static_cast<Out*>(out.data) + tile.sequence.batch * out.batch_stride + place.query * out.seq_stride +
         tile.group * out.group_stride + place.head * out.head_stride;
}

// Two neighbouring numbers from `at`, which is even, those of them that are inside [0, dim). aligned: rows begin at
// units of two elements, and so many they have.
template <class Out>
__device__ __forceinline__ void store_pair(Out* row, int at, int dim, float x, float y, bool aligned) {
  if (at >= dim) return;
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

}  // namespace xformers::cuda
