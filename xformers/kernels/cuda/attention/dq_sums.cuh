// dq = softmax_scale * dq_sum: sums in fp32 in global memory, in the order in which accumulators lie, to which tiles of
// keys add, and the kernel that makes dq of them.
#pragma once

#include "xformers/kernels/cuda/arch/copy.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {

// Where the numbers of one block of `rows` queries lie: accumulators, the threads of the block side by side. Warps lie
// over rows first, `row_warps` of them, then over dims. Of accumulator [row_tile, dim_tile] of the whole block, lane l
// has rows l / 4, + 8 and columns 2 (l % 4), + 1.
struct DqOrder {
  int rows, head_dim, threads, row_warps;

  bool operator==(const DqOrder&) const = default;
  constexpr int row_tiles() const { return rows / 16 / row_warps; }  // of a warp
  constexpr int dim_tiles() const { return head_dim / 8 / (threads / 32 / row_warps); }
  constexpr int block() const { return rows * head_dim; }
  // Of its warp's accumulators; from where thread * 4 is.
  __device__ __forceinline__ constexpr int of_thread(int row_tile, int dim_tile) const {
    return (row_tile * dim_tiles() + dim_tile) * threads * 4;
  }
  __device__ __forceinline__ constexpr int of_lane(int row_tile, int dim_tile, int lane) const {  // of the whole
    const int warp = dim_tile / dim_tiles() * row_warps + row_tile / row_tiles();
    const int tile = row_tile % row_tiles() * dim_tiles() + dim_tile % dim_tiles();
    return (tile * threads + warp * 32 + lane) * 4;
  }
};

// to + order's places += a warp's accumulators; `to`: where thread * 4 is.
template <DqOrder kOrder>
__device__ __forceinline__ void add_to_dq(float* to, const Fragment<kOrder.row_tiles(), kOrder.dim_tiles()>& acc) {
#pragma unroll
  for (int r = 0; r < kOrder.row_tiles(); ++r)
#pragma unroll
    for (int d = 0; d < kOrder.dim_tiles(); ++d)
      add_global_4(to + kOrder.of_thread(r, d), acc[r][d][0], acc[r][d][1], acc[r][d][2], acc[r][d][3]);
}

// A head's dq is there when all of its tiles are done. By one thread, after __threadfence() of all that have added to
// it, and a barrier.
__device__ __forceinline__ void tile_is_done(const BwdArgs& args, int head_of_all) {
  atomicAdd(args.tiles_done + head_of_all, 1);
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
// (nvcc's host code takes no struct as a kernel's template argument: kRows ... are a DqOrder's.)
template <class T, int kRows, int kHeadDim, int kThreads, int kRowWarps>
__global__ void __launch_bounds__(kThreads) attention_bwd_dq(const __grid_constant__ BwdArgs args) {
  constexpr DqOrder kOrder = {kRows, kHeadDim, kThreads, kRowWarps};
  constexpr int kDimTiles = kOrder.head_dim / 8, kPieces = kOrder.rows / 2 * kDimTiles;
  const AttentionBwdParams& p = args.p;
  const auto blocks = static_cast<unsigned>(args.query_blocks), heads = static_cast<unsigned>(p.shape.num_heads()),
             per_group = static_cast<unsigned>(p.shape.heads_per_group);
  const unsigned head_of_all = blockIdx.x / blocks, head = head_of_all % heads;
  if (blockIdx.x == gridDim.x - 1) wait_for_kernel_before();  // what comes next on the stream waits for this one alone
  // One tile has written dq.
  if (args.block_tiles && one_tile(args.block_tiles[blockIdx.x % blocks])) return;
  const RowTile tile = query_tile(p.shape, p.seq, head_of_all / heads, blockIdx.x % blocks, kOrder.rows);
  if (tile.rows <= 0) return;
  const Sequence& sequence = tile.sequence;
  const int64_t first_query = tile.first, place = int64_t{head_of_all} * blocks +
                                                  first_query_block(p.seq, sequence, kOrder.rows) +
                                                  first_query / kOrder.rows;
  await_tiles(args, head_of_all);
  const float* const from = args.dq_sum + place * (kOrder.rows * kOrder.head_dim);
  const int64_t dims = p.shape.head_dim;
  T* const to = static_cast<T*>(p.dq.data) + sequence.batch * p.dq.batch_stride + head / per_group * p.dq.group_stride +
                head % per_group * p.dq.head_stride + (sequence.q_begin + first_query) * p.dq.seq_stride;
#pragma unroll 4
  for (int piece = threadIdx.x; piece < kPieces; piece += kOrder.threads) {
    const int dim_tile = piece % kDimTiles, row = piece / kDimTiles % 8, row_tile = piece / kDimTiles / 8;
    alignas(16) uint32_t packed[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 sums = *reinterpret_cast<const float4*>(from + kOrder.of_lane(row_tile, dim_tile, row * 4 + i));
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

// when_tiles_are_done: its blocks start beside the last ones of the kernel before it, and wait for their heads' tiles.
template <class T, DqOrder kOrder>
void launch_dq(const BwdArgs& args, bool when_tiles_are_done, cudaStream_t stream) {
  // Without any query nothing was zeroed by which to count tiles. (Packed sequences still have blocks of queries then.)
  const int64_t heads = args.p.shape.batch * args.p.shape.num_heads();
  const int64_t blocks = args.p.shape.seqlen_q > 0 ? heads * args.query_blocks : 0;
  const auto kernel = attention_bwd_dq<T, kOrder.rows, kOrder.head_dim, kOrder.threads, kOrder.row_warps>;
  if (when_tiles_are_done) {
    launch_after(kernel, blocks, 1, kOrder.threads, stream, args);
  } else {
    launch<0>(kernel, blocks, 1, kOrder.threads, stream, args);
  }
}

}  // namespace xformers::cuda
