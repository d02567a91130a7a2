// dq_sum += dS K, in fp32 in global memory: key tiles add in any order, or, where args.turns is given, one after the
// other. Afterwards dq = softmax_scale * dq_sum. Where all the keys that a block of queries sees are in one tile, this
// writes dq.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_exponents.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_outputs.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_products.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_scores.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::sm80 {

// Where the numbers of one block of dq_rows() queries lie: accumulators, the threads of the block side by side. Of
// accumulator [row_tile, dim_tile] of the whole block, lane l has rows l / 4, + 8 and columns 2 (l % 4), + 1.
template <BwdPolicy kPolicy>
struct DqOrder {
  static constexpr int kRowWarps = kPolicy.dq_row_warps(), kRowTiles = kPolicy.dq_row_tiles(),
                       kDimTiles = kPolicy.dq_dim_tiles();  // of a warp
  static_assert(kDimTiles % 2 == 0);

  // Of its warp's accumulators; from where thread * 4 is.
  static __device__ __forceinline__ constexpr int of_thread(int row_tile, int dim_tile) {
    return (row_tile * kDimTiles + dim_tile) * kPolicy.threads() * 4;
  }
  static __device__ __forceinline__ int of_lane(int row_tile, int dim_tile, int lane) {  // of the whole
    const int warp = dim_tile / kDimTiles * kRowWarps + row_tile / kRowTiles;
    const int tile = row_tile % kRowTiles * kDimTiles + dim_tile % kDimTiles;
    return (tile * kPolicy.threads() + warp * 32 + lane) * 4;
  }
};

// Key tiles add to a block of queries one after the other: the first thread waits for those before this one. They were
// launched before it.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void await_turn(const BwdStep<kPolicy>& step, const int* turn) {
  const int end = min(step.first_query + kPolicy.block_m, step.tile.sequence.seqlen_q);
  const int first_tile = step.tile.band.key_range({step.first_query, end}).begin / kPolicy.block_n();
  const int mine = step.tile.first_key / kPolicy.block_n() - first_tile;
  while (*static_cast<const volatile int*>(turn) < mine) __nanosleep(20);
  __threadfence();
}

// dq_rows() queries, the `part`-th so many of the step's dS. dS^T [block_n, block_m] and K [block_n, dim] are in shared
// memory, dS times factor(). `block`: which queries of the sequence. whole: this is all of their dq.
template <class T, BwdPolicy kPolicy, class Factor>
__device__ __forceinline__ void add_dq(const BwdArgs& args, const BwdTile& tile, int part, uint32_t ds, uint32_t k,
                                       const Factor& factor, int block, bool whole) {
  using Order = DqOrder<kPolicy>;
  const int thread = thread_again(), lane = thread % 32, warp = thread / 32, dim_warp = warp / Order::kRowWarps;
  const int row_tile = part * (kPolicy.dq_rows() / 16) + warp % Order::kRowWarps * Order::kRowTiles;
  Fragment<Order::kRowTiles, Order::kDimTiles> acc = {};
#pragma unroll
  for (int n = 0; n < kPolicy.block_n() / 16; ++n) {
    uint32_t a[Order::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < Order::kRowTiles; ++r)
      load_a_transposed<kPolicy.block_m, ScoreLayout<kPolicy>>(a[r], ds, n * 16, row_tile + r, lane);
#pragma unroll
    for (int d = 0; d < Order::kDimTiles; d += 2) {
      uint32_t b[4];
      load_b_transposed<kPolicy.head_dim>(b, k, n * 16, (dim_warp * Order::kDimTiles + d) / 2, lane);
#pragma unroll
      for (int r = 0; r < Order::kRowTiles; ++r) {
        mma<T>(acc[r][d], a[r], b[0], b[1]);
        mma<T>(acc[r][d + 1], a[r], b[2], b[3]);
      }
    }
  }
  if (const float by = factor(); by != 1) multiply(acc, 1 / by);
  if (whole) {
    const HeadsTensor& dq = args.p.dq;
    const int first = block * kPolicy.dq_rows();
    T* const to = static_cast<T*>(dq.data) + heads_offset(dq, tile) + (tile.sequence.q_begin + first) * dq.seq_stride;
    write_sums(to, dq.seq_stride, tile.sequence.seqlen_q - first, args.p.shape.head_dim, args.aligned_dq, acc,
               warp % Order::kRowWarps * Order::kRowTiles * 16, dim_warp * Order::kDimTiles, args.scale);
    return;
  }
  float* const to = args.dq_sum + (tile.dq_block + block) * (kPolicy.dq_rows() * kPolicy.head_dim) + thread * 4;
#pragma unroll
  for (int r = 0; r < Order::kRowTiles; ++r)
#pragma unroll
    for (int d = 0; d < Order::kDimTiles; ++d)
      add_global_4(to + Order::of_thread(r, d), acc[r][d][0], acc[r][d][1], acc[r][d][2], acc[r][d][3]);
}

// A head's dq is there when all of its tiles are done. Called after __threadfence() and __syncthreads().
__device__ __forceinline__ void tile_is_done(const BwdArgs& args, const BwdTile& tile) {
  if (threadIdx.x == 0) atomicAdd(args.tiles_done + tile.head_of_all, 1);
}
__device__ __forceinline__ void await_tiles(const BwdArgs& args, int64_t head_of_all) {
  if (threadIdx.x == 0) {
    const volatile int* const done = args.tiles_done + head_of_all;
    while (*done < args.tiles * args.splits) __nanosleep(200);
    __threadfence();
  }
  __syncthreads();
}

// One block per (head, block of queries), launched while the last tiles are worked on: the heads whose tiles are done
// need not wait for the others. A thread turns 8 columns of rows r and r + 8.
template <class T, int kHeadDim, int kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem).threads())
    attention_bwd_dq_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem);
  constexpr int kDimTiles = kHeadDim / 8, kPieces = kPolicy.dq_rows() / 2 * kDimTiles;
  const AttentionBwdParams& p = args.p;
  const auto blocks = static_cast<unsigned>(args.query_blocks), heads = static_cast<unsigned>(p.shape.num_heads()),
             per_group = static_cast<unsigned>(p.shape.heads_per_group);
  const unsigned head_of_all = blockIdx.x / blocks, head = head_of_all % heads;
  if (blockIdx.x == gridDim.x - 1) wait_for_kernel_before();  // what comes next on the stream waits for this one alone
  // One tile has written dq.
  if (args.block_tiles && one_tile(args.block_tiles[blockIdx.x % blocks])) return;
  const RowTile tile = query_tile(p.shape, p.seq, head_of_all / heads, blockIdx.x % blocks, kPolicy.dq_rows());
  if (tile.rows <= 0) return;
  const Sequence& sequence = tile.sequence;
  const int64_t first_query = tile.first, place = int64_t{head_of_all} * blocks +
                                                  first_query_block(p.seq, sequence, kPolicy.dq_rows()) +
                                                  first_query / kPolicy.dq_rows();
  await_tiles(args, head_of_all);
  const float* const from = args.dq_sum + place * (kPolicy.dq_rows() * kHeadDim);
  const int64_t dims = p.shape.head_dim;
  T* const to = static_cast<T*>(p.dq.data) + sequence.batch * p.dq.batch_stride + head / per_group * p.dq.group_stride +
                head % per_group * p.dq.head_stride + (sequence.q_begin + first_query) * p.dq.seq_stride;
#pragma unroll 4
  for (int piece = threadIdx.x; piece < kPieces; piece += kPolicy.threads()) {
    const int dim_tile = piece % kDimTiles, row = piece / kDimTiles % 8, row_tile = piece / kDimTiles / 8;
    alignas(16) uint32_t packed[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 sums =
          *reinterpret_cast<const float4*>(from + DqOrder<kPolicy>::of_lane(row_tile, dim_tile, row * 4 + i));
      packed[0][i] = pack<T>(sums.x * args.scale, sums.y * args.scale);
      packed[1][i] = pack<T>(sums.z * args.scale, sums.w * args.scale);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = row_tile * 16 + half * 8 + row;
      if (first_query + query >= sequence.seqlen_q) continue;
      T* const at = to + query * p.dq.seq_stride + dim_tile * 8;
      if (args.aligned_dq) {
        if (dim_tile * 8 < dims) *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(packed[half]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (dim_tile * 8 + i < dims) at[i] = reinterpret_cast<const T*>(packed[half])[i];
        }
      }
    }
  }
}

}  // namespace xformers::cuda::sm80
