// What packed sequences leave out.
#pragma once

#include "xformers/kernels/cuda/attention/decode/decode_tile.cuh"
#include "xformers/kernels/cuda/attention/epilogue.cuh"

namespace xformers::cuda::decode {

// Rows before the first sequence and behind the last see no key. The blocks of the first slot do it for their heads.
template <class T>
__device__ __forceinline__ void clear_ends(const FwdArgs& args, const DecodeTile& tile) {
  const AttentionFwdParams& p = args.p;
  const int64_t begin = clamp_to<int64_t>(p.seq.cu_seqlens_q[0], 0, p.shape.seqlen_q),
                end = clamp_to<int64_t>(p.seq.cu_seqlens_q[p.seq.num_sequences], begin, p.shape.seqlen_q);
  const int64_t rows = begin + p.shape.seqlen_q - end, dim_v = p.shape.head_dim_v, heads = args.packed_heads.size();
  for (int64_t index = 0; index < rows * heads; ++index) {
    const int64_t row = index / heads;
    const RowPlace place{row < begin ? row : row - begin + end,
                         heads == 1 ? tile.head : static_cast<int>(index % heads)};
    if (args.out_partial) {  // the merge writes the row
      PartStats* const stats = args.stats_partial + partial_row(p.shape, tile, place);
      for (int s = threadIdx.x; s < args.num_splits; s += blockDim.x) stats[s * args.total_rows] = {-INFINITY, 0};
      continue;
    }
    for (int64_t d = threadIdx.x; d < dim_v; d += blockDim.x) {
      if (p.wide_out) {
        out_row<float>(p.out, tile, place)[d] = 0;
      } else {
        out_row<T>(p.out, tile, place)[d] = to_element<T>(0.0f);
      }
    }
    if (threadIdx.x == 0) store_lse(p, row_lse(-INFINITY, 0.0f), 0, tile.group, place.head, place.query);
  }
}

}  // namespace xformers::cuda::decode
