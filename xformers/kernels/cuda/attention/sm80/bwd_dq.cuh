// dq_sum += dS K, in fp32 in global memory: key tiles add in any order, or, where args.turns is given, one after the
// other. Afterwards dq = softmax_scale * dq_sum. Where all the keys that a block of queries sees are in one tile, this
// writes dq.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dq_sums.cuh"
#include "xformers/kernels/cuda/attention/ds_range.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_outputs.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_products.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_scores.cuh"

namespace xformers::cuda::sm80 {

constexpr DqOrder dq_order(const BwdPolicy& policy) {
  return {policy.dq_rows(), policy.head_dim, policy.threads(), policy.dq_row_warps()};
}

// dq_rows() queries, the `part`-th so many of the step's dS. dS^T [block_n, block_m] and K [block_n, dim] are in shared
// memory, dS times factor(). `block`: which queries of the sequence. whole: this is all of their dq. shown(line, first,
// count): whether 16 keys see any of these squares of queries of the step.
template <class T, BwdPolicy kPolicy, class Factor, class Shown>
__device__ __forceinline__ void add_dq(const BwdArgs& args, const BwdTile& tile, int part, uint32_t ds, uint32_t k,
                                       const Factor& factor, int block, bool whole, const Shown& shown) {
  constexpr DqOrder kOrder = dq_order(kPolicy);
  const int thread = thread_again(), lane = thread % 32, warp = thread / 32, dim_warp = warp / kOrder.row_warps;
  const int row_tile = part * (kPolicy.dq_rows() / 16) + warp % kOrder.row_warps * kOrder.row_tiles();
  Fragment<kOrder.row_tiles(), kOrder.dim_tiles()> acc = {};
  bool any = false;
#pragma unroll
  for (int n = 0; n < kPolicy.block_n() / 16; ++n) {
    if (!shown(n, row_tile, kOrder.row_tiles())) continue;
    any = true;
    uint32_t a[kOrder.row_tiles()][4];
#pragma unroll
    for (int r = 0; r < kOrder.row_tiles(); ++r)
      load_a_transposed<kPolicy.block_m, ScoreLayout<kPolicy>>(a[r], ds, n * 16, row_tile + r, lane);
#pragma unroll
    for (int d = 0; d < kOrder.dim_tiles(); d += 2) {
      uint32_t b[4];
      load_b_transposed<kPolicy.head_dim>(b, k, n * 16, (dim_warp * kOrder.dim_tiles() + d) / 2, lane);
#pragma unroll
      for (int r = 0; r < kOrder.row_tiles(); ++r) {
        mma<T>(acc[r][d], a[r], b[0], b[1]);
        mma<T>(acc[r][d + 1], a[r], b[2], b[3]);
      }
    }
  }
  if (!any) return;  // these queries see none of the keys
  if (const float by = factor(); by != 1) multiply(acc, 1 / by);
  if (whole) {
    const HeadsTensor& dq = args.p.dq;
    const int first = block * kPolicy.dq_rows();
    T* const to = static_cast<T*>(dq.data) + heads_offset(dq, tile) + (tile.sequence.q_begin + first) * dq.seq_stride;
    write_sums(to, dq.seq_stride, tile.sequence.seqlen_q - first, args.p.shape.head_dim, args.aligned_dq, acc,
               warp % kOrder.row_warps * kOrder.row_tiles() * 16, dim_warp * kOrder.dim_tiles(), args.scale);
    return;
  }
  add_to_dq<kOrder>(args.dq_sum + (tile.dq_block + block) * kOrder.block() + thread * 4, acc);
}

}  // namespace xformers::cuda::sm80
