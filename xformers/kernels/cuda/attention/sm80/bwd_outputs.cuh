// dk and dv out of the accumulators; where the queries of a tile were split, by way of partial sums in fp32.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_tile.cuh"

namespace xformers::cuda::sm80 {

// Four words of each of the four lanes of a quad, transposed: lane c gets word c of all lanes, in their order.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 1 ? words[i] : words[i + 1], 1);
    words[i] = lane & 1 ? got : words[i];
    words[i + 1] = lane & 1 ? words[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 2 ? words[i] : words[i + 2], 2);
    words[i] = lane & 2 ? got : words[i];
    words[i + 2] = lane & 2 ? words[i + 2] : got;
  }
}

// factor * acc, rows of `dim` numbers in chunks of kChunk; those of accumulators [rows, dims] begin at (row, chunk).
// The lanes of a quad, which have two columns each of a row, exchange them: each stores eight of one tile. aligned: in
// units of 16 bytes.
template <class T, int kRowTiles, int kDimTiles>
__device__ __forceinline__ void write_sums(T* to, int64_t stride, int rows, int64_t dim, bool aligned,
                                           const Fragment<kRowTiles, kDimTiles>& acc, int row, int chunk,
                                           float factor) {
  constexpr int kTiles = kRowTiles * kDimTiles;
  const int lane = thread_again() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int first = 0; first < kTiles; first += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int tile = first + i < kTiles ? first + i : 0;
        const float(&four)[4] = acc[tile / kDimTiles][tile % kDimTiles];
        words[i] = pack<T>(four[half * 2] * factor, four[half * 2 + 1] * factor);
      }
      transpose_quad(words, lane);
      const int mine = first + lane % 4;
      const int at_row = row + mine / kDimTiles * 16 + half * 8 + lane / 4, at_chunk = chunk + mine % kDimTiles;
      if (at_row >= rows || at_chunk * kChunk >= dim || mine >= kTiles) continue;
      T* const at = to + at_row * stride + at_chunk * kChunk;
      if (aligned) {
        *reinterpret_cast<uint4*>(at) = {words[0], words[1], words[2], words[3]};
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const auto bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
          if (at_chunk * kChunk + i < dim) reinterpret_cast<uint16_t*>(at)[i] = bits;
        }
      }
    }
}

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
