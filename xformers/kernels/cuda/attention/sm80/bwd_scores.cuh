// From scores and dP to P and dS, in registers: scale, bias, mask, dropout.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_dropout.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_loads.cuh"

namespace xformers::cuda::sm80 {

// One step's block of queries, as a warp's scores see it.
template <BwdPolicy kPolicy>
struct BwdStep {
  const BwdArgs& args;
  const BwdTile& tile;
  const BwdWarp<kPolicy>& warp;
  const Band& band;
  int first_query;
  bool full;                // every query sees every key
  const float* statistics;  // [lse, delta][block_m]
  uint32_t bias;            // staged, [block_m][block_n] in shared memory
};

// Elements of the bias where it is read, and of its gradient where it is written, one by one.
__device__ __forceinline__ bool inside(const BwdTile& tile, int query, int key) {
  return query < tile.sequence.seqlen_q && key < tile.sequence.seqlen_k;
}
template <class T>
__device__ __forceinline__ float bias_at(const ScoreBias& bias, const BwdTile& tile, int query, int key) {
  if (!bias.data || !inside(tile, query, key)) return 0;
  return to_float(static_cast<const T*>(bias.data)[bias_offset(bias, tile, query, key)]);
}
template <class T>
__device__ __forceinline__ void store_dbias_at(const ScoreBias& dbias, const BwdTile& tile, int query, int key,
                                               float ds) {
  if (!dbias.data || !inside(tile, query, key)) return;
  static_cast<T*>(dbias.data)[bias_offset(dbias, tile, query, key)] = to_element<T>(ds);
}

// scores -> P (what dropout leaves of it), dprobs -> dS.
template <bool kBias, bool kDropout, class T, BwdPolicy kPolicy>
__device__ __forceinline__ void differentiate(const BwdStep<kPolicy>& step, const KeptScores& kept,
                                              typename BwdWarp<kPolicy>::Scores& scores,
                                              typename BwdWarp<kPolicy>::Scores& dprobs) {
  using Warp = BwdWarp<kPolicy>;
  constexpr bool kGeneral = kPolicy.features == Features::kGeneral;
  constexpr float kLog2e = 1.4426950408889634f;
  const BwdArgs& args = step.args;
  const BwdTile& tile = step.tile;
  const int lane = threadIdx.x % 32, warp_key = tile.first_key + step.warp.key;
  const float scale = args.scale_log2, kept_factor = static_cast<float>(args.kept);
#pragma unroll
  for (int m2 = 0; m2 < Warp::kQueryTiles; m2 += 2) {
    uint32_t bias[Warp::kKeyTiles][4];  // keys, keys + 8, then the next eight queries
    if constexpr (kBias && !kGeneral) {
#pragma unroll
      for (int k = 0; k < Warp::kKeyTiles; ++k)
        load_a_transposed<Warp::kBlockN>(bias[k], step.bias, step.warp.query + m2 * 8, step.warp.key / 16 + k);
    }
#pragma unroll
    for (int m = m2; m < m2 + 2; ++m) {
      const int local = step.warp.query + m * 8 + lane % 4 * 2;  // of element 0; 1 is the next
      const int query = step.first_query + local;
      const float2 lse = *reinterpret_cast<const float2*>(step.statistics + local);
      const float2 delta = *reinterpret_cast<const float2*>(step.statistics + Warp::kBlockM + local);
#pragma unroll
      for (int k = 0; k < Warp::kKeyTiles; ++k) {
        const int key = warp_key + k * 16 + lane / 4;
        float(&s)[4] = scores[k][m];
        float(&dp)[4] = dprobs[k][m];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[i] = fmaf(s[i], scale, -(i & 1 ? lse.y : lse.x));
          if constexpr (kBias) {
            float b;
            if constexpr (kGeneral) {
              b = bias_at<T>(args.p.bias, tile, query + (i & 1), key + (i >> 1) * 8);
            } else {
              const float2 pair = unpack<T>(bias[k][(m - m2) * 2 + (i >> 1)]);
              b = i & 1 ? pair.y : pair.x;
            }
            s[i] = fmaf(b, kLog2e, s[i]);
          }
          s[i] = fast_exp2(s[i]);
        }
        if (!step.full) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!step.band.visible(query + (i & 1), key + (i >> 1) * 8)) s[i] = 0;
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float delta_here = i & 1 ? delta.y : delta.x;
          if constexpr (kDropout) {
            const bool keep = kept.keeps(k, m, i);
            dp[i] = s[i] * fmaf(dp[i], keep ? kept_factor : 0.0f, -delta_here);
            s[i] = keep ? s[i] : 0.0f;
          } else {
            dp[i] = s[i] * (dp[i] - delta_here);
          }
          if constexpr (kGeneral) store_dbias_at<T>(args.p.dbias, tile, query + (i & 1), key + (i >> 1) * 8, dp[i]);
        }
      }
    }
  }
}

}  // namespace xformers::cuda::sm80
