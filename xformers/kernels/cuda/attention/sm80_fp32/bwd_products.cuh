// The products of a backward warp's 16 keys with a block of queries.
#pragma once

#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_scores.cuh"

namespace xformers::cuda::sm80_fp32 {

template <BwdPolicy kPolicy>
class BackwardProducts : protected BackwardScores<kPolicy> {
  using Base = BackwardScores<kPolicy>;

 protected:
  using Base::Base, Base::kQueryTiles, Base::warp_key_;
  using typename Base::Scores;
  static constexpr int kDim = kPolicy.head_dim, kSteps = kQueryTiles / 2;  // of 16 queries
  using Gradient = float[kDim / 8][4];                                     // [16 keys, dims]

  // scores[keys, queries] = left[keys, dim] right[queries, dim]^T of this warp's keys. Small products are summed apart:
  // the tensor core would cut them to the size of the large ones.
  __device__ __forceinline__ void multiply_transposed(Scores& scores, uint32_t left, uint32_t right) {
    uint32_t keys = lane_a<kDim>(left) + warp_key_ * TileLayout<kDim>::kRowBytes;
    uint32_t queries = lane_b<kDim>(right);
    Scores rest = {};
    clear<1, kQueryTiles>(scores);
#pragma unroll 1
    for (int dim = 0; dim < kDim; dim += 64, keys += 128, queries += 128) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        const Halves a = load_halves<kDim>(keys, 0, d);
#pragma unroll
        for (int m = 0; m < kQueryTiles; m += 2) {
          const Halves b = load_halves<kDim>(queries, m * 8, d);
#pragma unroll
          for (int j = 0; j < 2; ++j) mma_halves(rest[0][m + j], a.small, b.big[2 * j], b.big[2 * j + 1]);
#pragma unroll
          for (int j = 0; j < 2; ++j) mma_halves(scores[0][m + j], a.big, b.big[2 * j], b.big[2 * j + 1]);
#pragma unroll
          for (int j = 0; j < 2; ++j) mma_halves(rest[0][m + j], a.big, b.small[2 * j], b.small[2 * j + 1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[0][m][i] += rest[0][m][i];
  }

  static __device__ __forceinline__ void to_operands(Halves (&a)[kSteps], const Scores& scores) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) a[k] = to_halves(scores[0][2 * k], scores[0][2 * k + 1]);
  }

  // acc[keys, dims] += units[keys] left[keys, queries] right[queries, dims]; small products first.
  __device__ __forceinline__ void accumulate(Gradient& acc, const Halves (&left)[kSteps], uint32_t right,
                                             const float (&units)[2]) {
    constexpr int kTiles = 2;  // of 8 dims at a time
    const uint32_t rows = lane_a<kDim>(right);
#pragma unroll
    for (int d = 0; d < kDim / 8; d += kTiles) {
      Halves b[kSteps];
      float sums[kTiles][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) b[k] = load_halves_transposed<kDim>(rows, k * 16, d / 2);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) mma_halves(sums[j], left[k].small, b[k].big[2 * j], b[k].big[2 * j + 1]);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) mma_halves(sums[j], left[k].big, b[k].small[2 * j], b[k].small[2 * j + 1]);
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int j = 0; j < kTiles; ++j) mma_halves(sums[j], left[k].big, b[k].big[2 * j], b[k].big[2 * j + 1]);
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[d + j][i] = fmaf(sums[j][i], units[i / 2], acc[d + j][i]);
    }
  }
};

}  // namespace xformers::cuda::sm80_fp32
