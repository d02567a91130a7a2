// From scores and dP to P and dS, in registers: scale, bias, mask, dropout.
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
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
  const float* statistics;  // [lse, delta][block_m]
  uint32_t bias;            // staged, [block_m][block_n] in shared memory

  // Every query of the warp's scores sees every key of theirs.
  __device__ __forceinline__ bool is_full() const {
    using Warp = BwdWarp<kPolicy>;
    const int query = first_query + warp.query, key = tile.first_key + warp.key;
    return band.is_full({query, query + Warp::kQueries}, {key, key + Warp::kKeys});
  }
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

// Where a lane's elements are: element i of query tile m and key tile k.
template <BwdPolicy kPolicy>
struct LanePlace {
  int local, query, key;  // the query in the block and in the sequence, the key there; of m = k = i = 0

  __device__ __forceinline__ explicit LanePlace(const BwdStep<kPolicy>& step) {
    const int lane = thread_again() % 32;
    local = step.warp.query + lane % 4 * 2;
    query = step.first_query + local;
    key = step.tile.first_key + step.warp.key + lane / 4;
  }
  __device__ __forceinline__ int query_of(int m, int i) const { return query + m * 8 + i % 2; }
  __device__ __forceinline__ int key_of(int k, int i) const { return key + k * 16 + i / 2 * 8; }
};

// scores -> P, as if nothing were masked, of query tiles m2 and m2 + 1. With dropout, P is multiplied by 1 / (1 - p):
// lse is less by the logarithm of this (run_bwd_sm80).
template <bool kBias, class T, BwdPolicy kPolicy>
__device__ __forceinline__ void exponentiate(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& scores,
                                             int m2) {
  using Warp = BwdWarp<kPolicy>;
  constexpr bool kGeneral = kPolicy.features == Features::kGeneral;
  constexpr float kLog2e = 1.4426950408889634f;
  const LanePlace<kPolicy> place(step);
  const float scale = step.args.scale_log2;
  uint32_t bias[Warp::kKeyTiles][4];  // keys, keys + 8, then the next eight queries
  if constexpr (kBias && !kGeneral) {
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k)
      load_a_transposed<Warp::kBlockN>(bias[k], step.bias, step.warp.query + m2 * 8, step.warp.key / 16 + k,
                                       thread_again() % 32);
  }
#pragma unroll
  for (int m = m2; m < m2 + 2; ++m) {
    const float2 lse = *reinterpret_cast<const float2*>(step.statistics + place.local + m * 8);
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float s = fmaf(scores[k][m][i], scale, -(i % 2 ? lse.y : lse.x));
        if constexpr (kBias && kGeneral) {
          s = fmaf(bias_at<T>(step.args.p.mods.bias, step.tile, place.query_of(m, i), place.key_of(k, i)), kLog2e, s);
        } else if constexpr (kBias) {
          const float2 pair = unpack<T>(bias[k][(m - m2) * 2 + i / 2]);
          s = fmaf(i % 2 ? pair.y : pair.x, kLog2e, s);
        }
        scores[k][m][i] = fast_exp2(s);
      }
    }
  }
}

// What is masked -> 0.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void mask(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& probs) {
  using Warp = BwdWarp<kPolicy>;
  const LanePlace<kPolicy> place(step);
#pragma unroll
  for (int m = 0; m < Warp::kQueryTiles; ++m)
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!step.band.visible(place.query_of(m, i), place.key_of(k, i))) probs[k][m][i] = 0;
}

// dprobs -> dS; with dropout, probs -> what is kept of them. Delta, which is multiplied by the same P for dS, has 1 - p
// as a factor (run_bwd_sm80).
template <bool kDropout, class T, BwdPolicy kPolicy>
__device__ __forceinline__ void differentiate(const BwdStep<kPolicy>& step,
                                              const KeptScores<BwdWarp<kPolicy>::kQueryTiles>& kept,
                                              typename BwdWarp<kPolicy>::Scores& probs,
                                              typename BwdWarp<kPolicy>::Scores& dprobs) {
  using Warp = BwdWarp<kPolicy>;
  const LanePlace<kPolicy> place(step);
#pragma unroll
  for (int m = 0; m < Warp::kQueryTiles; ++m) {
    const float2 delta = *reinterpret_cast<const float2*>(step.statistics + Warp::kBlockM + place.local + m * 8);
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float delta_here = i % 2 ? delta.y : delta.x, prob = probs[k][m][i];
        float& ds = dprobs[k][m][i];
        if constexpr (kDropout) {
          probs[k][m][i] = __uint_as_float(__float_as_uint(prob) & kept.mask(i % 2, m, 2 * k + i / 2));
          ds = fmaf(probs[k][m][i], ds, -prob * delta_here);
        } else {
          ds = prob * (ds - delta_here);
        }
        if constexpr (kPolicy.features == Features::kGeneral)
          store_dbias_at<T>(step.args.p.dbias, step.tile, place.query_of(m, i), place.key_of(k, i), ds);
      }
    }
  }
}

}  // namespace xformers::cuda::sm80
