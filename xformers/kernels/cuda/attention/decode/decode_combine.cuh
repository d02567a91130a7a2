// The second pass of split decoding: one block per row puts the splits' results together. A warp adds up every eighth
// split, a lane two elements of every 64.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/decode/decode_tile.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::decode {

inline constexpr int kCombineWarps = 8;

template <class T, int kHeadDim>
__global__ void __launch_bounds__(32 * kCombineWarps) combine_splits(const __grid_constant__ FwdArgs args) {
  constexpr int kPairs = kHeadDim / 64;  // a lane has elements 2 lane, + 1 of every 64
  __shared__ float shares[kMostSplits], sums[kCombineWarps][kHeadDim];
  const AttentionFwdParams& p = args.p;
  const DecodeTile tile = decode_tile(args);
  const int row = static_cast<int>(blockIdx.y), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  wait_for_kernel_before();  // the splits
  if (row >= tile.rows) return;
  const RowPlace place = place_of(args, tile, row);
  const int64_t from = partial_row(args, tile, place);
  const int dim_v = static_cast<int>(p.shape.head_dim_v);
  // Every warp works out the shares for itself.
  float most = -INFINITY, total = 0;
  for (int s = lane; s < args.num_splits; s += 32) most = fmaxf(most, args.lse_partial[s * args.total_rows + from]);
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  for (int s = lane; s < args.num_splits; s += 32) {
    const float share = most == -INFINITY ? 0.0f : expf(args.lse_partial[s * args.total_rows + from] - most);
    total += share;
    if (warp == 0) shares[s] = share;
  }
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  __syncthreads();

  float x[kPairs][2] = {};
#pragma unroll 8
  for (int s = warp; s < args.num_splits; s += kCombineWarps) {
    const float share = shares[s];
    const float* part = args.out_partial + (s * args.total_rows + from) * dim_v;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int at = i * 64 + lane * 2;
      if (share == 0 || at >= dim_v) continue;
      if (dim_v % 2 == 0) {
        const float2 pair = *reinterpret_cast<const float2*>(part + at);
        x[i][0] += share * pair.x, x[i][1] += share * pair.y;
      } else {
        x[i][0] += share * part[at];
        if (at + 1 < dim_v) x[i][1] += share * part[at + 1];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) *reinterpret_cast<float2*>(&sums[warp][i * 64 + lane * 2]) = {x[i][0], x[i][1]};
  __syncthreads();
  const float inverse = total > 0 ? 1 / total : 0.0f;
  for (int at = 2 * threadIdx.x; at < dim_v; at += 2 * 32 * kCombineWarps) {
    float a = 0, b = 0;
#pragma unroll
    for (int w = 0; w < kCombineWarps; ++w) a += sums[w][at], b += sums[w][at + 1];
    if (p.wide_out) {
      store_pair(out_row<float>(args, tile, place), at, dim_v, a * inverse, b * inverse, args.aligned_out);
    } else {
      store_pair(out_row<T>(args, tile, place), at, dim_v, a * inverse, b * inverse, args.aligned_out);
    }
  }
  if (threadIdx.x == 0 && p.lse.data) *lse_place(args, tile, place) = total > 0 ? most + logf(total) : -INFINITY;
}

}  // namespace xformers::cuda::decode
