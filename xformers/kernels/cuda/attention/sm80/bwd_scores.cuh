// From scores and dP to P and dS, in registers: scale, bias, mask, dropout.
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_dropout.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_loads.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"

namespace xformers::cuda::sm80 {

// One step's block of queries, as a warp's scores see it.
template <BwdPolicy kPolicy>
struct BwdStep {
  const BwdArgs& args;
  const BwdTile& tile;
  const BwdWarp<kPolicy>& warp;
  int first_query;
  bool spans;  // the tile spans sequences
  const BwdShared<kPolicy>& shared;
  const float* statistics;  // [lse, delta][block_m]
  uint32_t bias;            // staged, [block_m][block_n] in shared memory
  int turn;                 // of a block mask's walk

  // Every query of the warp's scores sees every key of theirs.
  __device__ __forceinline__ bool is_full() const {
    const int query = first_query + warp.query, end = query + BwdWarp<kPolicy>::kQueries;
    if (spans) {
      const Range all = shared.warp_queries[warp.key / 32];
      return all.begin <= query && end <= all.end;
    }
    const int key = tile.first_key + warp.key;
    return tile.band.is_full({query, end}, {key, key + BwdWarp<kPolicy>::kKeys});
  }
  // Queries that see key `row` of the warp's.
  __device__ __forceinline__ Range queries_of(int row) const {
    if (spans) return shared.key_queries[warp.key + row];
    const int key = tile.first_key + warp.key + row;
    if (warp.key + row >= tile.keys) return {0, 0};
    return {tile.band.first_query(key), tile.band.last_query(key) + 1};
  }
  // Of key `row` of the warp's.
  __device__ __forceinline__ RowTilt tilt_of(int row) const {
    return {tile.tilt.slope, tile.tilt.place + static_cast<float>(tile.first_key + warp.key + row)};
  }
  // Any query of the warp's scores has an lse (in units of log2(e)) so far from 0 that one rounding of it, or of a
  // score times log2(e), would show. With dropout, or NaN: what is dropped must not hide it.
  __device__ __forceinline__ bool has_large_rows(bool drops) const {
    const float lse = statistics[warp.query + threadIdx.x % BwdWarp<kPolicy>::kQueries];
    return __any_sync(kAllLanes, isnan(lse) ? drops : fabsf(lse) >= kLargeScore * kLog2e && lse != INFINITY);
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
__device__ __forceinline__ void store_dbias_at(const ScoreBias& dbias, bool shared, const BwdTile& tile, int query,
                                               int key, float ds) {
  if (!inside(tile, query, key)) return;
  const int64_t at = bias_offset(dbias, tile, query, key);
  if (shared) {
    atomicAdd(static_cast<float*>(dbias.data) + at, ds);
  } else {
    static_cast<T*>(dbias.data)[at] = to_element<T>(ds);
  }
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

// What dS is to be multiplied by where scores are capped, in fp16, two queries per register.
template <BwdPolicy kPolicy>
using CapSlopes = uint32_t[BwdWarp<kPolicy>::kKeyTiles][BwdWarp<kPolicy>::kQueryTiles][2];

// The scores of query tiles m2 and m2 + 1 are capped and tilted, and in natural units then: whether any of it was to
// do.
template <BwdPolicy kPolicy>
__device__ __forceinline__ bool modify(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& scores,
                                       CapSlopes<kPolicy>& cap_slopes, int m2) {
  using Warp = BwdWarp<kPolicy>;
  const ScoreModifiers& mods = step.args.p.mods;
  const ColumnTiles tiles{m2, m2 + 2};
  float scale = step.args.scale;
  if (mods.softcap > 0) {
    float other = 0;
    cap<false, Warp::kKeyTiles, Warp::kQueryTiles>(scores, scale, static_cast<float>(mods.softcap), tiles,
                                                   [&](int k, int m, int i, float slope) {
                                                     if (i % 2) cap_slopes[k][m][i / 2] = pack<__half>(other, slope);
                                                     other = slope;
                                                   });
    scale = 1;
  }
  if (mods.alibi_slopes.data) {
    tilt<Warp::kKeyTiles, Warp::kQueryTiles>(
        scores, scale, step.first_query + step.warp.query, [&](int row) { return step.tilt_of(row); }, tiles);
  }
  return mods.softcap > 0 || mods.alibi_slopes.data;
}

// dS behind the cap -> before it.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void uncap(typename BwdWarp<kPolicy>::Scores& ds, const CapSlopes<kPolicy>& cap_slopes) {
  using Warp = BwdWarp<kPolicy>;
#pragma unroll
  for (int k = 0; k < Warp::kKeyTiles; ++k)
#pragma unroll
    for (int m = 0; m < Warp::kQueryTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 slopes = unpack<__half>(cap_slopes[k][m][half]);
        ds[k][m][half * 2] *= slopes.x, ds[k][m][half * 2 + 1] *= slopes.y;
      }
}

// scores -> P, as if nothing were masked, of query tiles m2 and m2 + 1. With dropout, P is multiplied by 1 / (1 - p):
// lse is less by the logarithm of this (run_bwd_sm80). kExact: where scores are large, the difference to lse is taken
// first, of numbers as fp32 holds them, and multiplied by log2(e) then; near 0 this rounds no better.
template <bool kBias, bool kExact, class T, BwdPolicy kPolicy>
__device__ __forceinline__ void exponentiate(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& scores,
                                             CapSlopes<kPolicy>& cap_slopes, int m2) {
  using Warp = BwdWarp<kPolicy>;
  constexpr bool kGeneral = kPolicy.features == Features::kGeneral;
  const LanePlace<kPolicy> place(step);
  float scale = kExact ? step.args.scale : step.args.scale_log2;
  if constexpr (kPolicy.features.may(kModifyOps)) {
    if (modify(step, scores, cap_slopes, m2)) scale = kExact ? 1 : kLog2e;
  }
  uint32_t bias[Warp::kKeyTiles][4];  // keys, keys + 8, then the next eight queries
  if constexpr (kBias && !kGeneral) {
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k)
      load_a_transposed<Warp::kBlockN>(bias[k], step.bias, step.warp.query + m2 * 8, step.warp.key / 16 + k,
                                       thread_again() % 32);
  }
#pragma unroll
  for (int m = m2; m < m2 + 2; ++m) {
    const float2 of_lanes = *reinterpret_cast<const float2*>(step.statistics + place.local + m * 8);
    float lse[2] = {of_lanes.x, of_lanes.y}, low[2] = {0, 0};
    if constexpr (kExact) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = place.query_of(m, i);
        RowLse<float> both{};
        if (query < step.tile.sequence.seqlen_q) {
          both = load_lse<float>(step.args.p, step.tile.sequence.batch, step.tile.group, step.tile.head,
                                 step.tile.sequence.q_begin + query);
        }
        if (lse[i] == lse[i]) lse[i] = both.lse;  // NaN stays
        low[i] = both.low - static_cast<float>(step.args.lse_shift) * kLn2;
      }
    }
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float added = 0;
        if constexpr (kBias && kGeneral) {
          added = bias_at<T>(step.args.p.mods.bias, step.tile, place.query_of(m, i), place.key_of(k, i));
        } else if constexpr (kBias) {
          const float2 pair = unpack<T>(bias[k][(m - m2) * 2 + i / 2]);
          added = kExact && !step.args.p.mods.bias.data ? 0 : i % 2 ? pair.y : pair.x;
        }
        float& s = scores[k][m][i];
        if constexpr (kExact) {
          s = kBias ? biased(s, scale, added) : __fmul_rn(s, scale);
          s = ((s - lse[i % 2]) - low[i % 2]) * kLog2e;
        } else {
          s = fmaf(s, scale, -lse[i % 2]);
          if constexpr (kBias) s = added == -INFINITY ? added : fmaf(added, kLog2e, s);
        }
        s = fast_exp2(s);
      }
    }
  }
}

// What is masked -> 0, of P and of dS: neither may have become 0 times something that is not finite.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void mask(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& probs,
                                     typename BwdWarp<kPolicy>::Scores& ds) {
  using Warp = BwdWarp<kPolicy>;
  const auto queries_of = [&](int row) { return step.queries_of(row); };
  cuda::mask<Warp::kKeyTiles, Warp::kQueryTiles>(probs, step.first_query + step.warp.query, queries_of, 0);
  cuda::mask<Warp::kKeyTiles, Warp::kQueryTiles>(ds, step.first_query + step.warp.query, queries_of, 0);
}

// The same of what a block mask hides.
template <BwdPolicy kPolicy>
__device__ __forceinline__ void mask_blocks(const BwdStep<kPolicy>& step, typename BwdWarp<kPolicy>::Scores& probs,
                                            typename BwdWarp<kPolicy>::Scores& ds) {
  using Warp = BwdWarp<kPolicy>;
  const auto& walk = step.shared.walk();
  const auto shown_of = [&](int of_warp, int of_queries) -> uint32_t {
    return walk.queries_of_lane(step.args.p.blocks, step.turn, step.warp.key + of_warp,
                                step.warp.query / kSquare + of_queries);
  };
  mask_squares<Warp::kKeyTiles, Warp::kQueryTiles>(probs, shown_of, 0);
  mask_squares<Warp::kKeyTiles, Warp::kQueryTiles>(ds, shown_of, 0);
}

// dprobs -> dS; with dropout, probs -> what is kept of them. Delta, which is multiplied by the same P for dS, has 1 - p
// as a factor (run_bwd_sm80).
template <bool kDropout, bool kExact, BwdPolicy kPolicy>
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
          const uint32_t mask = kept.mask(i % 2, m, 2 * k + i / 2);
          probs[k][m][i] = kExact ? prob * __uint_as_float(mask & __float_as_uint(1.0f))  // 0 times NaN is NaN
                                  : __uint_as_float(__float_as_uint(prob) & mask);
          ds = fmaf(probs[k][m][i], ds, -prob * delta_here);
        } else {
          ds = prob * (ds - delta_here);
        }
      }
    }
  }
}

// The gradient of the bias, element by element.
template <class T, BwdPolicy kPolicy>
__device__ __forceinline__ void store_dbias_elements(const BwdStep<kPolicy>& step,
                                                     const typename BwdWarp<kPolicy>::Scores& ds) {
  using Warp = BwdWarp<kPolicy>;
  const LanePlace<kPolicy> place(step);
#pragma unroll
  for (int m = 0; m < Warp::kQueryTiles; ++m)
#pragma unroll
    for (int k = 0; k < Warp::kKeyTiles; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        store_dbias_at<T>(step.args.p.dbias, step.args.p.dbias_shared, step.tile, place.query_of(m, i),
                          place.key_of(k, i), ds[k][m][i]);
}

}  // namespace xformers::cuda::sm80
