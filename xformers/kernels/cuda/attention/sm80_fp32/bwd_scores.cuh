// What a backward warp does with its scores between the products, transposed: bias, mask, probabilities, dropout, dS,
// the bias gradient. A lane holds keys lane / 4 and + 8 of its warp's 16.
#pragma once

#include <cfloat>

#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/places.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"
#include "xformers/kernels/cuda/attention/split_merge.cuh"

namespace xformers::cuda::sm80_fp32 {

struct NoWalk {};

template <BwdPolicy kPolicy>
class BackwardScores {
 public:
  // The walk of a block mask, in shared memory; instances without score operations take none.
  using Blocks =
      std::conditional_t<kPolicy.scored,
                         BlockWalk<LinesOf::kKeys, kPolicy.block_n() / kSquare, kPolicy.block_m / kSquare>, NoWalk>;

 protected:
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n(), kQueryTiles = kBlockM / 8;
  static constexpr bool kScored = kPolicy.scored;
  using Scores = Fragment<1, kQueryTiles>;  // [16 keys, block_m queries]

  // In shared memory: what belongs to rows.
  struct Rows {
    float statistics[kPolicy.stages][2][kBlockM];                                             // lse, delta
    float k[kBlockN], v[kBlockN], q[kPolicy.stages][kBlockM], dout[kPolicy.stages][kBlockM];  // ratios (halves.cuh)
    float largest_dout[kPolicy.warps], ds_units[kPolicy.warps][kBlockM];
  };
  static_assert(sizeof(Rows) == kPolicy.rows_bytes());

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  const BwdPlace& place_;
  const HeadTile& tile_;
  const Band& band_;
  Rows* rows_;
  int warp_key_;                // first key of this warp
  float dp_scale_, dout_unit_;  // of products of V and dO; of dO
  float slope_sum_ = 0;         // this lane's, of dS * distance
  Blocks& blocks_;
  int turn_ = 0;  // of a block mask's walk

  __device__ __forceinline__ BackwardScores(const BwdArgs& args, const BwdPlace& place, Rows* rows, Blocks& blocks)
      : args_(args),
        p_(args.p),
        place_(place),
        tile_(place.tile),
        band_(place.band),
        rows_(rows),
        warp_key_(static_cast<int>(threadIdx.x) / 32 * 16),
        blocks_(blocks) {}

  // Query and key of element i of query tile m, counted from the start of the sequence.
  __device__ __forceinline__ int query_of(int block, int m, int i) const {
    return block * kBlockM + lane_column(m) + i % 2;
  }
  __device__ __forceinline__ int key_of(int i) const { return tile_.first + warp_key_ + lane_row(0, i / 2); }
  __device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, int query, int key) const {
    return tile_.offset(bias) + query * bias.q_stride + key * bias.k_stride;
  }
  __device__ __forceinline__ bool inside(int query, int key) const {
    return query < tile_.sequence.seqlen_q && key < tile_.sequence.seqlen_k;
  }

  // Ratios of rows of K or V, and of Q or dO.
  __device__ __forceinline__ void scale_keys(Scores& scores, const float* ratios) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float ratio = ratios[warp_key_ + lane_row(0, half)];
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) scores[0][m][half * 2] *= ratio, scores[0][m][half * 2 + 1] *= ratio;
    }
  }
  __device__ __forceinline__ void scale_queries(Scores& scores, const float* ratios) const {
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[0][m][i] *= ratios[lane_column(m) + i % 2];
  }

  // Numbers are scaled by powers of two, so that the largest is near the end of what halves can hold: of each key of a
  // lane; of each query, or only of all of this warp. Results are to be multiplied by the units.
  static __device__ __forceinline__ void suit_keys(Scores& scores, float (&units)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = 0;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        largest = fmaxf(largest, fmaxf(fabsf(scores[0][m][half * 2]), fabsf(scores[0][m][half * 2 + 1])));
      }
      const float scale = scale_to(max_of_row(largest), 13);
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) scores[0][m][half * 2] *= scale, scores[0][m][half * 2 + 1] *= scale;
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
        for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(scores[0][m][i]));
      // As integers, numbers that are not negative have the same order.
      const float scale = scale_to(__uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(largest))), 13);
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[0][m][i] *= scale;
      static_assert(kBlockM == 32);
      units[lane] = inverse_power(scale);
      return;
    }
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = fmaxf(fabsf(scores[0][m][i]), fabsf(scores[0][m][2 + i]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
        }
        const float scale = scale_to(largest, 13);
        scores[0][m][i] *= scale, scores[0][m][2 + i] *= scale;
        if (lane < 4) units[m * 8 + lane * 2 + i] = inverse_power(scale);
      }
  }

  // The place of a row of scores, a key, among their columns.
  __device__ __forceinline__ RowTilt tilt_of(int row) const {
    return tilt_of_key(p_, tile_.sequence, tile_.group, tile_.head, tile_.first + warp_key_ + row);
  }
  // cap_slopes: what dS is to be multiplied by, where scores are capped.
  __device__ __forceinline__ void modify_scores(Scores& scores, Scores& cap_slopes, int block) {
    if constexpr (!kScored) return;
    const ScoreModifiers& mods = p_.mods;
    float scale = read_unit(place_.unit).scale;
    if (mods.softcap > 0) {
      cap<true, 1, kQueryTiles>(scores, scale, static_cast<float>(mods.softcap), {0, kQueryTiles},
                                [&](int r, int n, int i, float slope) { cap_slopes[r][n][i] = slope; });
      scale = 1;
    }
    if (mods.alibi_slopes.data) {
      tilt<1, kQueryTiles>(scores, scale, block * kBlockM, [&](int row) { return tilt_of(row); });
      scale = 1;
    }
    const float* bias = static_cast<const float*>(mods.bias.data);
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of(block, m, i), key = key_of(i);
        const bool adds = bias && inside(query, key);
        scores[0][m][i] = biased(scores[0][m][i], scale, adds ? bias[bias_offset(mods.bias, query, key)] : 0.0f);
      }
  }

  __device__ __forceinline__ bool hides() const { return kScored && p_.blocks.present(); }
  // The block of queries of a step.
  __device__ __forceinline__ int block_of_turn(int turn) const {
    if constexpr (kScored) return blocks_.at(turn).index;
    return 0;
  }
  // That of the step behind this one. Behind a barrier, which comes after all have done the step before.
  __device__ __forceinline__ int next_turn() {
    if constexpr (kScored) {
      if (threadIdx.x < 32) blocks_.find(p_.blocks, turn_ + 2);
    }
    return block_of_turn(++turn_);
  }
  // This warp's keys are all seen by the step before which next_turn() was asked, as far as blocks say.
  __device__ __forceinline__ bool sees_blocks() const {
    if constexpr (kScored) {
      constexpr uint32_t kAll = all_squares(kBlockM / kSquare);
      const auto& step = blocks_.at(turn_ - 1);
      return (step.seen[warp_key_ / kSquare] & ~uint32_t{step.partial[warp_key_ / kSquare]}) == kAll;
    }
    return true;
  }

  // Every query of the block is there and sees every key of the tile, or of the warp where blocks say who does.
  __device__ __forceinline__ bool is_full(int block) const {
    const int query = block * kBlockM;
    if (hides() && !sees_blocks()) return false;
    return query + kBlockM <= tile_.sequence.seqlen_q &&
           band_.is_full({query, query + kBlockM}, {tile_.first, tile_.first + kBlockN});
  }
  // What is masked -> 0. (Queries past the sequence would spoil the scale of a key's numbers.)
  __device__ __forceinline__ void mask(Scores& x, int block) const {
    cuda::mask<1, kQueryTiles>(
        x, block * kBlockM,
        [&](int row) {
          const int key = tile_.first + warp_key_ + row;
          return key < tile_.sequence.seqlen_k ? band_.query_range({key, key + 1}) : Range{0, 0};
        },
        0.0f);
    if constexpr (kScored) {
      if (!hides() || sees_blocks()) return;
      mask_squares<1, kQueryTiles>(
          x,
          [&](int row, int square) { return blocks_.queries_of_lane(p_.blocks, turn_ - 1, warp_key_ + row, square); },
          0.0f);
    }
  }

  // S^T -> P^T = exp(S - L), without dropout. Where the L of any query is so far from 0 that one rounding of it, or of
  // a score times log2(e), would show, differences of numbers as fp32 holds them are taken first.
  __device__ __forceinline__ void to_probabilities(Scores& scores, int block, int stage) {
    constexpr float kFar = kLargeScore * kLog2e;
    static_assert(kBlockM == 32);
    const float* const lse = rows_->statistics[stage][0];
    const float of_lane = lse[threadIdx.x % 32];
    if (__any_sync(kAllLanes, fabsf(of_lane) >= kFar && of_lane <= FLT_MAX)) {
      to_probabilities_exactly(scores, block);
    } else {
      const float scale = kScored ? kLog2e : read_unit(place_.unit).scale_log2;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        const float2 lse2 = *reinterpret_cast<const float2*>(lse + lane_column(m));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[0][m][i] = fast_exp2(fmaf(scores[0][m][i], scale, -(i % 2 ? lse2.y : lse2.x)));
        }
      }
    }
    if (!is_full(block)) mask(scores, block);
  }
  __device__ __forceinline__ void to_probabilities_exactly(Scores& scores, int block) {
    const float scale = kScored ? 1 : read_unit(place_.unit).scale;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = query_of(block, m, i);
        if (query >= tile_.sequence.seqlen_q) continue;
        const RowLse lse =
            load_lse<float>(p_, tile_.sequence.batch, tile_.group, tile_.head, tile_.sequence.q_begin + query);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& s = scores[0][m][half * 2 + i];
          s = fast_exp2(((__fmul_rn(s, scale) - lse.lse) - lse.low) * kLog2e);
        }
      }
  }

  // Products of V and dO -> dS^T of the scores before their cap.
  __device__ __forceinline__ void differentiate(Scores& ds, const Scores& probs, const Scores& cap_slopes,
                                                uint32_t dropped, int block, int stage) {
    const float* delta = rows_->statistics[stage][1];
    const float scale = kScored ? dp_scale_ * static_cast<float>(args_.kept) : dp_scale_;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 delta2 = *reinterpret_cast<const float2*>(delta + lane_column(m));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float factor = kScored && is_dropped(dropped, m, i) ? 0.0f : scale;
        ds[0][m][i] = probs[0][m][i] * fmaf(ds[0][m][i], factor, -(i % 2 ? delta2.y : delta2.x));
      }
    }
    if (!is_full(block)) mask(ds, block);  // 0 times what is not finite
    if constexpr (!kScored) return;
    store_dbias(ds, block);
    if (p_.dslopes.data) {
      slope_sum_ += distances_times<1, kQueryTiles>(ds, block * kBlockM, [&](int row) { return tilt_of(row).place; });
    }
    if (p_.mods.softcap > 0) {
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) ds[0][m][i] *= cap_slopes[0][m][i];
      if (!is_full(block)) mask(ds, block);
    }
  }

  // Which of this warp's scores are dropped, a bit each.
  __device__ __forceinline__ uint32_t draw(int block) const {
    static_assert(kQueryTiles * 4 <= 32);
    static_assert(kBlockM % 32 == 0);
    const PhiloxKey philox = dropout_key(p_.dropout);
    const uint32_t head = tile_.drop_head(p_.shape);
    const int first_eight = warp_key_ % 32 / 8;  // of 32 keys: 0 or 2
    uint32_t dropped = 0;
#pragma unroll
    for (int m = 0; m < kQueryTiles; m += 4) {
      KeptByLane<32, true> kept;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        kept.draw(i, philox, args_.drop_rule, head, block * kBlockM + m * 8, tile_.first + warp_key_ / 32 * 32);
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

  __device__ __forceinline__ void store_dbias(const Scores& ds, int block) const {
    if (!p_.dbias.data) return;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of(block, m, i), key = key_of(i);
        if (!inside(query, key)) continue;
        float* const to = static_cast<float*>(p_.dbias.data) + bias_offset(p_.dbias, query, key);
        if (p_.dbias_shared) {
          atomicAdd(to, ds[0][m][i]);
        } else {
          *to = ds[0][m][i];
        }
      }
  }
};

}  // namespace xformers::cuda::sm80_fp32
