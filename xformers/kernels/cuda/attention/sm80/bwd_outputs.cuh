// dk and dv out of the accumulators, through shared memory; where the queries of a tile were split, by way of partial
// sums in fp32.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_tile.cuh"

namespace xformers::cuda::sm80 {

// Into a tile [block_n, dim].
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void stage_keys(uint32_t to, const BwdWarp<kPolicy>& warp,
                                           const typename BwdWarp<kPolicy>::Sums& acc, float factor) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < BwdWarp<kPolicy>::kKeyTiles; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int d = 0; d < BwdWarp<kPolicy>::kDimTiles; ++d) {
        const int row = warp.key + k * 16 + half * 8 + lane / 4, chunk = 2 * warp.chunk2 + d;
        store_shared_4(to + TileLayout<kPolicy.head_dim>::offset(row, chunk) + lane % 4 * 4,
                       pack<T>(acc[k][d][half * 2] * factor, acc[k][d][half * 2 + 1] * factor));
      }
}
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void write_keys(const BwdArgs& args, const BwdTile& tile, const HeadsTensor& tensor,
                                           uint32_t from, int64_t dim) {
  T* const to = static_cast<T*>(tensor.data) + heads_offset(tensor, tile) +
                (tile.sequence.k_begin + tile.first_key) * tensor.seq_stride;
  for_each_chunk<kPolicy.block_n(), kPolicy.head_dim, kPolicy.threads(), 4>(
      from, [&](int row, int chunk, uint32_t address) {
        if (row >= tile.keys || chunk * kChunk >= dim) return;
        T* const at = to + row * tensor.seq_stride + chunk * kChunk;
        const uint4 eight = load_shared_16(address);
        if (args.aligned_dkv) {
          *reinterpret_cast<uint4*>(at) = eight;
        } else {
          for (int i = 0; i < kChunk && chunk * kChunk + i < dim; ++i) at[i] = reinterpret_cast<const T*>(&eight)[i];
        }
      });
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
template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kFeatures, kLargeSmem).threads())
    attention_bwd_dkv_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kFeatures, kLargeSmem);
  using Warp = BwdWarp<kPolicy>;
  extern __shared__ __align__(128) unsigned char smem[];
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
  stage_keys<T>(shared_address(smem), Warp(), acc, static_cast<float>(second ? args.kept : p.softmax_scale));
  __syncthreads();
  write_keys<T, kPolicy>(args, tile, second ? p.dv : p.dk, shared_address(smem),
                         second ? p.shape.head_dim_v : p.shape.head_dim);
}

}  // namespace xformers::cuda::sm80
