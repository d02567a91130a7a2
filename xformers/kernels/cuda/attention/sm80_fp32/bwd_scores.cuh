// What a backward warp does with its scores between the products, transposed: bias, mask, probabilities, dropout, dS,
// the bias gradient. A lane holds keys lane / 4 and + 8 of its warp's 16.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_tile.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"

namespace xformers::cuda::sm80_fp32 {

template <BwdPolicy kPolicy>
class BackwardScores {
 protected:
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n(), kQueryTiles = kBlockM / 8;
  static constexpr bool kScored = kPolicy.scored;
  static constexpr float kLog2e = 1.4426950408889634f;
  using Scores = float[kQueryTiles][4];  // [16 keys, block_m queries]

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  const BwdTile& tile_;
  const Band band_;
  const float* rows_;  // in shared memory: [stages][lse, delta][block_m]
  int warp_key_;       // first key of this warp

  __device__ __forceinline__ BackwardScores(const BwdArgs& args, const BwdTile& tile, const float* rows)
      : args_(args),
        p_(args.p),
        tile_(tile),
        band_(args.p.band, tile.sequence),
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

  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int block) {
    const float* bias = static_cast<const float*>(p_.bias.data);
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of(block, m, i), key = key_of(i);
        float& s = scores[m][i];
        s *= args_.scale_log2;
        if (bias && inside(query, key)) s = fmaf(bias[bias_offset(p_.bias, query, key)], kLog2e, s);
      }
  }

  // S^T -> P^T, without dropout.
  __device__ __forceinline__ void to_probabilities(Scores& scores, int block, int stage) {
    const int first_query = block * kBlockM;
    const bool full = band_.is_full({first_query, first_query + kBlockM}, {tile_.first_key, tile_.first_key + kBlockN});
    const float* lse = rows_ + stage * 2 * kBlockM;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 lse2 = *reinterpret_cast<const float2*>(lse + m * 8 + threadIdx.x % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = scores[m][i];
        const float lse_here = i % 2 ? lse2.y : lse2.x;
        s = fast_exp2(kScored ? s - lse_here : fmaf(s, args_.scale_log2, -lse_here));
      }
    }
    if (full) return;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!band_.visible(query_of(block, m, i), key_of(i))) scores[m][i] = 0;
      }
  }

  // dP^T -> dS^T.
  __device__ __forceinline__ void differentiate(Scores& ds, const Scores& probs, uint32_t dropped, int block,
                                                int stage) {
    const float* delta = rows_ + stage * 2 * kBlockM + kBlockM;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 delta2 = *reinterpret_cast<const float2*>(delta + m * 8 + threadIdx.x % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float kept = !kScored ? 1.0f : is_dropped(dropped, m, i) ? 0.0f : static_cast<float>(args_.kept);
        ds[m][i] = probs[m][i] * (ds[m][i] * kept - (i % 2 ? delta2.y : delta2.x));
        if constexpr (kScored) store_dbias(ds[m][i], query_of(block, m, i), key_of(i));
      }
    }
  }

  // Which of this warp's scores are dropped, a bit each.
  __device__ __forceinline__ uint32_t draw(int block) const {
    static_assert(kQueryTiles * 4 <= 32);
    const DropoutDraws draws(p_.dropout);
    const auto sequence_head = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                     tile_.group * p_.shape.heads_per_group + tile_.head);
    const bool second = warp_key_ % 32 != 0;  // which sixteen of 32 keys
    uint32_t dropped = 0;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const TransposedDraws kept(draws, tile_.first_key + warp_key_ / 32 * 32,
                                 static_cast<uint32_t>(block * kBlockM + m * 8), sequence_head);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!(second ? kept.keeps(1, i) : kept.keeps(0, i))) dropped |= 1u << (m * 4 + i);
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
