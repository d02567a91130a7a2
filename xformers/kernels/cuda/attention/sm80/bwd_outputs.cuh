// dk and dv out of the accumulators; where the queries of a tile were split, by way of partial sums in fp32.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_tile.cuh"
#include "xformers/kernels/cuda/attention/write_sums.cuh"

namespace xformers::cuda::sm80 {

// A tile's dk or dv.
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void write_keys(const BwdArgs& args, const BwdTile& tile, const HeadsTensor& tensor,
                                           int64_t dim, const BwdWarp<kPolicy>& warp,
                                           const typename BwdWarp<kPolicy>::Sums& acc, float factor) {
  T* const to = static_cast<T*>(tensor.data) + heads_offset(tensor, tile) +
                (tile.sequence.k_begin + tile.first_key) * tensor.seq_stride;
  write_sums(to, tensor.seq_stride, tile.keys, dim, args.aligned_dkv, acc, warp.key, 2 * warp.chunk2, factor);
}

// The partial sums of one split of a tile: dk, then dv; a thread's fours, the threads of the block side by side.
template <BwdPolicy kPolicy>
__device__ __forceinline__ float4* partial_sums(const BwdArgs& args, const BwdTile& tile, int split) {
  constexpr int kFours = kPolicy.block_n() * kPolicy.head_dim / 4;
  const int64_t place = (int64_t{tile.head_of_all} * args.tiles + tile.index) * args.splits + split;
  return reinterpret_cast<float4*>(args.partial) + place * (2 * kFours) + threadIdx.x;
}
template <BwdPolicy kPolicy>
__device__ __forceinline__ void store_partial(float4* to, const typename BwdWarp<kPolicy>::Sums& acc) {
  using Warp = BwdWarp<kPolicy>;
#pragma unroll
  for (int k = 0; k < Warp::kKeyTiles; ++k)
#pragma unroll
    for (int d = 0; d < Warp::kDimTiles; ++d) {
      to[(k * Warp::kDimTiles + d) * Warp::kThreads] = {acc[k][d][0], acc[k][d][1], acc[k][d][2], acc[k][d][3]};
    }
}
template <BwdPolicy kPolicy>
__device__ __forceinline__ void add_partial(typename BwdWarp<kPolicy>::Sums& acc, const float4* from) {
  using Warp = BwdWarp<kPolicy>;
#pragma unroll
  for (int k = 0; k < Warp::kKeyTiles; ++k)
#pragma unroll
    for (int d = 0; d < Warp::kDimTiles; ++d) {
      const float4 sums = from[(k * Warp::kDimTiles + d) * Warp::kThreads];
      acc[k][d][0] += sums.x, acc[k][d][1] += sums.y, acc[k][d][2] += sums.z, acc[k][d][3] += sums.w;
    }
}

// dk (y 0) and dv (y 1) of one tile per block, out of the partial sums of its splits, in their order.
template <class T, int kHeadDim, int kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem).threads())
    attention_bwd_dkv_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem);
  using Warp = BwdWarp<kPolicy>;
  const auto tiles = static_cast<unsigned>(args.tiles);
  const BwdTile tile =
      bwd_tile_at<kPolicy.block_n()>(args, static_cast<int>(blockIdx.x / tiles), static_cast<int>(blockIdx.x % tiles));
  if (tile.keys <= 0) return;
  const bool second = blockIdx.y == 1;
  typename Warp::Sums acc = {};
  for (int split = 0; split < args.splits; ++split) {
    add_partial<kPolicy>(acc, partial_sums<kPolicy>(args, tile, split) +
                                  (second ? Warp::kKeyTiles * Warp::kDimTiles * Warp::kThreads : 0));
  }
  const AttentionBwdParams& p = args.p;
  write_keys<T, kPolicy>(args, tile, second ? p.dv : p.dk, second ? p.shape.head_dim_v : p.shape.head_dim, Warp(), acc,
                         second ? 1.0f : static_cast<float>(p.softmax_scale));
}

}  // namespace xformers::cuda::sm80
