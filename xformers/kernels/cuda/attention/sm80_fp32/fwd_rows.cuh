// What a forward warp does with its rows between the products: bias, mask, online softmax, dropout; and their results.
// A lane holds rows lane / 4 and + 8 of each row tile.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/fwd_tile.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/tile.cuh"

namespace xformers::cuda::sm80_fp32 {

inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <FwdPolicy kPolicy>
class ForwardRows {
 protected:
  static constexpr int kDim = kPolicy.head_dim, kKeys = kPolicy.block_n;
  static constexpr int kRowTiles = kPolicy.row_tiles, kKeyTiles = kKeys / 8, kDims32 = kDim / 32;
  static constexpr bool kScored = kPolicy.scored;
  using Scores = float[kRowTiles][kKeyTiles][4];

  const FwdArgs& args_;
  const AttentionFwdParams& p_;
  const FwdTile& tile_;
  const Band band_;
  int warp_row_;                                              // first row of this warp in the tile
  float acc_o_[kRowTiles][kDims32][4][4] = {};                // columns in the order of Sums
  float row_max_[kRowTiles][2], row_sum_[kRowTiles][2] = {};  // of scores in units of 1 / scale_log2 (scored: of 1)

  __device__ __forceinline__ ForwardRows(const FwdArgs& args, const FwdTile& tile)
      : args_(args),
        p_(args.p),
        tile_(tile),
        band_(args.p.band, tile.sequence),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) row_max_[r][0] = row_max_[r][1] = -INFINITY;
  }

  __device__ __forceinline__ int query_of(int row) const {
    return args_.packed_heads == 1 ? row : row / args_.packed_heads;
  }
  __device__ __forceinline__ int head_of(int row) const {
    return args_.packed_heads == 1 ? tile_.first_head : row % args_.packed_heads;
  }
  // Row of the sequence that this lane holds.
  __device__ __forceinline__ int lane_row(int row_tile, int half) const {
    return tile_.first_row + warp_row_ + row_tile * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ bool inside(int row) const { return row < tile_.first_row + tile_.rows; }

  // The scores are scaled here, since a bias comes between, or the scale may be negative.
  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int key) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(r, half);
        const bool has_bias = p_.bias.data != nullptr && inside(row);
        const int first = key + threadIdx.x % 4 * 2;
        const float* bias = nullptr;
        if (has_bias) {
          bias = static_cast<const float*>(p_.bias.data) + tile_.sequence.batch * p_.bias.batch_stride +
                 tile_.group * p_.bias.group_stride + head_of(row) * p_.bias.head_stride +
                 query_of(row) * p_.bias.q_stride + first * p_.bias.k_stride;
        }
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = scores[r][n][half * 2 + i];
            s *= args_.scale_log2;
            if (has_bias && first + n * 8 + i < tile_.sequence.seqlen_k) {
              s = fmaf(bias[i * p_.bias.k_stride], kLog2e, s);
            }
          }
          bias += 8 * p_.bias.k_stride;
        }
      }
  }

  __device__ __forceinline__ void mask(Scores& scores, int key) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = query_of(lane_row(r, half));
        const int low = band_.first_key(query) - key,
                  high = min(band_.last_key(query) + 1, tile_.sequence.seqlen_k) - key;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = n * 8 + threadIdx.x % 4 * 2 + i;
            if (at < low || at >= high) scores[r][n][half * 2 + i] = -INFINITY;
          }
        }
      }
  }

  // Scores become probabilities relative to row_max, a score near the running maximum: acc_o and row_sum are rescaled
  // only where the maximum has grown by more than a factor of 2^8.
  __device__ __forceinline__ void softmax(Scores& scores) {
    constexpr float kRoom = 8;
    const float scale = kScored ? 1.0f : args_.scale_log2;
    float largest[kRowTiles][2];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float m = row_max_[r][half];
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) m = fmaxf(m, fmaxf(scores[r][n][half * 2], scores[r][n][half * 2 + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        largest[r][half] = m;
        grown |= m * scale > row_max_[r][half] * scale + kRoom;
      }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shrink = fast_exp2(row_max_[r][half] * scale - origin(largest[r][half]) * scale);
          row_max_[r][half] = largest[r][half];
          row_sum_[r][half] *= shrink;
#pragma unroll
          for (int d = 0; d < kDims32; ++d)
#pragma unroll
            for (int j = 0; j < 4; ++j) acc_o_[r][d][j][half * 2] *= shrink, acc_o_[r][d][j][half * 2 + 1] *= shrink;
        }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = origin(row_max_[r][half]) * scale;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = scores[r][n][half * 2 + i];
            s = fast_exp2(fmaf(s, scale, -from));
            sum += s;
          }
        }
        row_sum_[r][half] += sum;
      }
  }
  // A row that has seen no key keeps -inf; -inf minus itself would be NaN, so it is treated as 0.
  static __device__ __forceinline__ float origin(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

  __device__ __forceinline__ void drop(Scores& scores, int key) {
    static_assert(kKeys % 32 == 0);
    const DropoutDraws draws(p_.dropout);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      uint32_t query[2], sequence_head[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(r, half);
        query[half] = static_cast<uint32_t>(query_of(row));
        sequence_head[half] = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                    tile_.group * p_.shape.heads_per_group + head_of(row));
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 4) {
        const AccumulatorDraws kept(draws, key + n * 8, query, sequence_head);
#pragma unroll
        for (int part = 0; part < 4; ++part)
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[r][n + part][i] = kept.keeps(part, i) ? scores[r][n + part][i] : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void finish() {
    const int dim_v = static_cast<int>(p_.shape.head_dim_v);
    const float scale = kScored ? 1.0f : args_.scale_log2;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = row_sum_[r][half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int row = lane_row(r, half);
        if (!inside(row)) continue;
        const float inverse = sum > 0 ? static_cast<float>(args_.kept) / sum : 0.0f;
        const int64_t query = tile_.sequence.q_begin + query_of(row), batch = tile_.sequence.batch;
        const int head = head_of(row);
        if (threadIdx.x % 4 == 0 && p_.lse.data) {
          static_cast<float*>(p_.lse.data)[batch * p_.lse.batch_stride + tile_.group * p_.lse.group_stride +
                                           head * p_.lse.head_stride + query] =
              sum > 0 ? (row_max_[r][half] * scale + __log2f(sum)) * kLn2 : -INFINITY;
        }
        float* const out = static_cast<float*>(p_.out.data) + batch * p_.out.batch_stride + query * p_.out.seq_stride +
                           tile_.group * p_.out.group_stride + head * p_.out.head_stride;
#pragma unroll
        for (int d = 0; d < kDims32; ++d)
#pragma unroll
          for (int i = half * 2; i < half * 2 + 2; ++i) {
            const auto& acc = acc_o_[r][d];
            store_4(out, 32 * d + sum_column(i), dim_v, args_.aligned_out,
                    {acc[0][i] * inverse, acc[1][i] * inverse, acc[2][i] * inverse, acc[3][i] * inverse});
          }
      }
  }
};

}  // namespace xformers::cuda::sm80_fp32
