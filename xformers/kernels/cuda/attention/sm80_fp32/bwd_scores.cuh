// What a backward warp does with its scores between the products, transposed: bias, mask, probabilities, dropout, dS,
// the bias gradient. A lane holds keys lane / 4 and + 8 of its warp's 16.
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_tile.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/halves.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"

namespace xformers::cuda::sm80_fp32 {

template <BwdPolicy kPolicy>
class BackwardScores {
 protected:
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n(), kQueryTiles = kBlockM / 8;
  static constexpr bool kScored = kPolicy.scored;
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr uint32_t kAllLanes = 0xffffffffu;
  using Scores = float[kQueryTiles][4];  // [16 keys, block_m queries]

  // In shared memory: what belongs to rows.
  struct Rows {
    float statistics[kPolicy.stages][2][kBlockM];                                             // lse, delta
    float k[kBlockN], v[kBlockN], q[kPolicy.stages][kBlockM], dout[kPolicy.stages][kBlockM];  // ratios (halves.cuh)
    float largest_dout[kPolicy.warps], ds_units[kPolicy.warps][kBlockM];
  };
  static_assert(sizeof(Rows) == kPolicy.rows_bytes());

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  const BwdTile& tile_;
  const Band& band_;
  Rows* rows_;
  int warp_key_;                // first key of this warp
  float dp_scale_, dout_unit_;  // of products of V and dO; of dO

  __device__ __forceinline__ BackwardScores(const BwdArgs& args, const BwdPlace& place, Rows* rows)
      : args_(args),
        p_(args.p),
        tile_(place.tile),
        band_(place.band),
        rows_(rows),
        warp_key_(static_cast<int>(threadIdx.x) / 32 * 16) {}

  // Query and key of element i of query tile m, counted from the start of the sequence.
  __device__ __forceinline__ int query_of(int block, int m, int i) const {
    return block * kBlockM + m * 8 + threadIdx.x % 4 * 2 + i % 2;
  }
  __device__ __forceinline__ int key_of(int i) const {
    return tile_.first_key + warp_key_ + i / 2 * 8 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, int query, int key) const {
    return tile_.sequence.batch * bias.batch_stride + tile_.group * bias.group_stride + tile_.head * bias.head_stride +
           query * bias.q_stride + key * bias.k_stride;
  }
  __device__ __forceinline__ bool inside(int query, int key) const {
    return query < tile_.sequence.seqlen_q && key < tile_.sequence.seqlen_k;
  }

  // Ratios of rows of K or V, and of Q or dO.
  __device__ __forceinline__ void scale_keys(Scores& scores, const float* ratios) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float ratio = ratios[warp_key_ + half * 8 + threadIdx.x % 32 / 4];
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) scores[m][half * 2] *= ratio, scores[m][half * 2 + 1] *= ratio;
    }
  }
  __device__ __forceinline__ void scale_queries(Scores& scores, const float* ratios) const {
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][i] *= ratios[m * 8 + threadIdx.x % 4 * 2 + i % 2];
  }

  // Numbers are scaled by powers of two, so that the largest is near the end of what halves can hold: of each key of a
  // lane; of each query, or only of all of this warp. Results are to be multiplied by the units.
  static __device__ __forceinline__ void suit_keys(Scores& scores, float (&units)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = 0;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        largest = fmaxf(largest, fmaxf(fabsf(scores[m][half * 2]), fabsf(scores[m][half * 2 + 1])));
      }
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const float scale = scale_to(largest, 13);
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) scores[m][half * 2] *= scale, scores[m][half * 2 + 1] *= scale;
      units[half] = inverse_power(scale);
    }
  }
  __device__ __forceinline__ void suit_queries(Scores& scores, bool each) const {
    float* const units = rows_->ds_units[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    if (!each) {
      float largest = 0;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(scores[m][i]));
      // As integers, numbers that are not negative have the same order.
      const float scale = scale_to(__uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(largest))), 13);
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][i] *= scale;
      static_assert(kBlockM == 32);
      units[lane] = inverse_power(scale);
      return;
    }
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = fmaxf(fabsf(scores[m][i]), fabsf(scores[m][2 + i]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
        }
        const float scale = scale_to(largest, 13);
        scores[m][i] *= scale, scores[m][2 + i] *= scale;
        if (lane < 4) units[m * 8 + lane * 2 + i] = inverse_power(scale);
      }
  }

  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int block) {
    if constexpr (!kScored) return;
    const float* bias = static_cast<const float*>(p_.mods.bias.data);
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of(block, m, i), key = key_of(i);
        float& s = scores[m][i];
        s *= args_.scale_log2 * (1 / (kUsualScale * kUsualScale));
        if (bias && inside(query, key)) s = fmaf(bias[bias_offset(p_.mods.bias, query, key)], kLog2e, s);
      }
  }

  // S^T -> P^T, without dropout.
  __device__ __forceinline__ void to_probabilities(Scores& scores, int block, int stage) {
    const int first_query = block * kBlockM;
    const bool full = band_.is_full({first_query, first_query + kBlockM}, {tile_.first_key, tile_.first_key + kBlockN});
    const float* lse = rows_->statistics[stage][0];
    const float scale = args_.scale_log2 * (1 / (kUsualScale * kUsualScale));
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 lse2 = *reinterpret_cast<const float2*>(lse + m * 8 + threadIdx.x % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = scores[m][i];
        const float lse_here = i % 2 ? lse2.y : lse2.x;
        s = fast_exp2(kScored ? s - lse_here : fmaf(s, scale, -lse_here));
      }
    }
    if (full && first_query + kBlockM <= tile_.sequence.seqlen_q) return;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of(block, m, i);  // those past the sequence would spoil the scale of a key's numbers
        if (query >= tile_.sequence.seqlen_q || !band_.visible(query, key_of(i))) scores[m][i] = 0;
      }
  }

  // Products of V and dO -> dS^T.
  __device__ __forceinline__ void differentiate(Scores& ds, const Scores& probs, uint32_t dropped, int block,
                                                int stage) {
    const float* delta = rows_->statistics[stage][1];
    const float scale = kScored ? dp_scale_ * static_cast<float>(args_.kept) : dp_scale_;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 delta2 = *reinterpret_cast<const float2*>(delta + m * 8 + threadIdx.x % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float factor = kScored && is_dropped(dropped, m, i) ? 0.0f : scale;
        ds[m][i] = probs[m][i] * fmaf(ds[m][i], factor, -(i % 2 ? delta2.y : delta2.x));
        if constexpr (kScored) store_dbias(ds[m][i], query_of(block, m, i), key_of(i));
      }
    }
  }

  // Which of this warp's scores are dropped, a bit each.
  __device__ __forceinline__ uint32_t draw(int block) const {
    static_assert(kQueryTiles * 4 <= 32);
    static_assert(kBlockM % 32 == 0);
    const PhiloxKey philox = dropout_key(p_.dropout);
    const auto sequence_head = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                     tile_.group * p_.shape.heads_per_group + tile_.head);
    const int first_eight = warp_key_ % 32 / 8;  // of 32 keys: 0 or 2
    uint32_t dropped = 0;
#pragma unroll
    for (int m = 0; m < kQueryTiles; m += 4) {
      KeptByLane<32, true> kept;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        kept.draw(i, philox, args_.drop_rule, sequence_head, block * kBlockM + m * 8,
                  tile_.first_key + warp_key_ / 32 * 32);
#pragma unroll
        for (int eight = 0; eight < 8; ++eight) {
          if (!kept.keeps(i, eight / 2, first_eight + eight % 2)) dropped |= 1u << (m * 4 + eight * 2 + i);
        }
      }
    }
    return dropped;
  }
  static __device__ __forceinline__ bool is_dropped(uint32_t dropped, int m, int i) {
    return dropped >> (m * 4 + i) & 1;
  }

  __device__ __forceinline__ void store_dbias(float ds, int query, int key) const {
    if (!p_.dbias.data || !inside(query, key)) return;
    static_cast<float*>(p_.dbias.data)[bias_offset(p_.dbias, query, key)] = ds;
  }
};

}  // namespace xformers::cuda::sm80_fp32
