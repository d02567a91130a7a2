// What a forward warp does with its rows between the products: bias, mask, online softmax, dropout; and their results.
// A lane holds rows lane / 4 and + 8 of each row tile.
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/fwd_tile.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/halves.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"

namespace xformers::cuda::sm80_fp32 {

inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <FwdPolicy kPolicy>
class ForwardRows {
 protected:
  static constexpr int kDim = kPolicy.head_dim, kKeys = kPolicy.block_n;
  static constexpr int kRowTiles = kPolicy.row_tiles, kKeyTiles = kKeys / 8, kDimTiles = kDim / 8;
  static constexpr bool kScored = kPolicy.scored;
  static constexpr int kRaised = 6;  // probabilities are 2^6 times as large, up to 2^14, which suits halves
  using Scores = float[kRowTiles][kKeyTiles][4];

  const FwdArgs& args_;
  const AttentionFwdParams& p_;
  const FwdTile& tile_;
  const Band& band_;
  int warp_row_;                               // first row of this warp in the tile
  float scale_log2_;                           // of products of Q and K as they are split
  float acc_o_[kRowTiles][kDimTiles][4] = {};  // in units of 1 / (kUsualScale 2^kRaised)
  float row_sum_[kRowTiles][2] = {};
  // [block_m], in shared memory, since it seldom changes: a score near the running maximum, in units of 1 / scale_log2_
  // (scored: of 1).
  float* row_max_;

  __device__ __forceinline__ ForwardRows(const FwdArgs& args, const FwdTile& tile, const Band& band, float* row_max)
      : args_(args),
        p_(args.p),
        tile_(tile),
        band_(band),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles),
        scale_log2_(args.scale_log2 * (1 / (kUsualScale * kUsualScale))),
        row_max_(row_max) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) row_max[tile_row(r, 0)] = row_max[tile_row(r, 1)] = -INFINITY;
    __syncwarp();
  }

  __device__ __forceinline__ int query_of(int row) const {
    return args_.packed_heads == 1 ? row : row / args_.packed_heads;
  }
  __device__ __forceinline__ int head_of(int row) const {
    return args_.packed_heads == 1 ? tile_.first_head : row % args_.packed_heads;
  }
  // Row that this lane holds: of the tile; of the sequence.
  __device__ __forceinline__ int tile_row(int row_tile, int half) const {
    const int thread = thread_again();
    return thread / 32 * 16 * kRowTiles + thread % 32 / 4 + row_tile * 16 + half * 8;
  }
  __device__ __forceinline__ int lane_row(int row_tile, int half) const {
    return tile_.first_row + tile_row(row_tile, half);
  }
  __device__ __forceinline__ bool inside(int row) const { return row < tile_.first_row + tile_.rows; }

  // Ratios of rows of K or V, and of Q (halves.cuh).
  __device__ __forceinline__ void scale_columns(Scores& scores, const float* ratios) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float ratio = ratios[n * 8 + threadIdx.x % 4 * 2 + i];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) scores[r][n][i] *= ratio, scores[r][n][2 + i] *= ratio;
      }
  }
  __device__ __forceinline__ void scale_rows(Scores& scores, const float* ratios) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float ratio = ratios[tile_row(r, half)];
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) scores[r][n][half * 2] *= ratio, scores[r][n][half * 2 + 1] *= ratio;
      }
  }

  // The ratios of V, where there are any, go to the probabilities. Those of a row are then scaled by a power of two, so
  // that the largest is near the end of what halves can hold; its results are to be multiplied by `units`.
  __device__ __forceinline__ void suit_to_values(Scores& probs, float (&units)[kRowTiles][2], const float* ratios) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) units[r][0] = units[r][1] = 1;
    if (!ratios) return;
    scale_columns(probs, ratios);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = 0;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          largest = fmaxf(largest, fmaxf(probs[r][n][half * 2], probs[r][n][half * 2 + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float scale = scale_to(largest, 13);
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) probs[r][n][half * 2] *= scale, probs[r][n][half * 2 + 1] *= scale;
        units[r][half] = inverse_power(scale);
      }
  }

  // The scores are scaled here, since a bias comes between, or the scale may be negative.
  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int key) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(r, half);
        const bool has_bias = p_.mods.bias.data != nullptr && inside(row);
        const int first = key + threadIdx.x % 4 * 2;
        const float* bias = nullptr;
        if (has_bias) {
          bias = static_cast<const float*>(p_.mods.bias.data) + tile_.sequence.batch * p_.mods.bias.batch_stride +
                 tile_.group * p_.mods.bias.group_stride + head_of(row) * p_.mods.bias.head_stride +
                 query_of(row) * p_.mods.bias.q_stride + first * p_.mods.bias.k_stride;
        }
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = scores[r][n][half * 2 + i];
            s *= scale_log2_;
            if (has_bias && first + n * 8 + i < tile_.sequence.seqlen_k) {
              s = fmaf(bias[i * p_.mods.bias.k_stride], kLog2e, s);
            }
          }
          bias += 8 * p_.mods.bias.k_stride;
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
    const float scale = kScored ? 1.0f : scale_log2_;
    float maximum[kRowTiles][2], largest[kRowTiles][2];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float m = maximum[r][half] = row_max_[tile_row(r, half)];
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) m = fmaxf(m, fmaxf(scores[r][n][half * 2], scores[r][n][half * 2 + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        largest[r][half] = m;
        grown |= m * scale > maximum[r][half] * scale + kRoom;
      }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shrink = fast_exp2((maximum[r][half] - origin(largest[r][half])) * scale);
          maximum[r][half] = row_max_[tile_row(r, half)] = largest[r][half];
          row_sum_[r][half] *= shrink;
#pragma unroll
          for (int d = 0; d < kDimTiles; ++d) acc_o_[r][d][half * 2] *= shrink, acc_o_[r][d][half * 2 + 1] *= shrink;
        }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = origin(maximum[r][half]) * scale - kRaised;
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
    const PhiloxKey philox = dropout_key(p_.dropout);
    const auto sequence_head = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                     tile_.group * p_.shape.heads_per_group + tile_.first_head);
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        KeptByLane<16 * kRowTiles, false> kept;
        kept.draw(i, philox, args_.drop_rule, sequence_head, tile_.first_row + warp_row_, key + n * 8);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int part = 0; part < 4; ++part)
              if (!kept.keeps(i, 2 * r + half, part)) scores[r][n + part][half * 2 + i] = 0;
      }
    }
  }

  __device__ __forceinline__ void finish() {
    constexpr float kLowered = 1 / float{1 << kRaised};
    const float scale = kScored ? 1.0f : scale_log2_;
    const int dim_v = static_cast<int>(p_.shape.head_dim_v);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = row_sum_[r][half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int row = lane_row(r, half);
        if (!inside(row)) continue;
        const float inverse = sum > 0 ? static_cast<float>(args_.kept) / (kUsualScale * sum) : 0.0f;
        const int64_t query = tile_.sequence.q_begin + query_of(row), batch = tile_.sequence.batch;
        const int head = head_of(row);
        if (threadIdx.x % 4 == 0 && p_.lse.data) {
          static_cast<float*>(p_.lse.data)[batch * p_.lse.batch_stride + tile_.group * p_.lse.group_stride +
                                           head * p_.lse.head_stride + query] =
              sum > 0 ? (row_max_[tile_row(r, half)] * scale + __log2f(sum * kLowered)) * kLn2 : -INFINITY;
        }
        float* const out = static_cast<float*>(p_.out.data) + batch * p_.out.batch_stride + query * p_.out.seq_stride +
                           tile_.group * p_.out.group_stride + head * p_.out.head_stride;
#pragma unroll
        for (int d = 0; d < kDimTiles; ++d) {
          store_2(out, 8 * d + threadIdx.x % 4 * 2, dim_v, args_.aligned_out,
                  {acc_o_[r][d][half * 2] * inverse, acc_o_[r][d][half * 2 + 1] * inverse});
        }
      }
  }
};

}  // namespace xformers::cuda::sm80_fp32
