// What a forward warp does with its rows between the products: bias, mask, online softmax, dropout; and their results.
// A lane holds rows lane / 4 and + 8 of each row tile.
#pragma once

#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/places.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"
#include "xformers/kernels/cuda/attention/split_merge.cuh"

namespace xformers::cuda::sm80_fp32 {

template <FwdPolicy kPolicy>
class ForwardRows {
 protected:
  static constexpr int kDim = kPolicy.head_dim, kKeys = kPolicy.block_n;
  static constexpr int kRowTiles = kPolicy.row_tiles, kKeyTiles = kKeys / 8, kDimTiles = kDim / 8;
  static constexpr bool kScored = kPolicy.scored;
  static constexpr int kRaised = 6;  // probabilities are 2^6 times as large, up to 2^14, which suits halves
  using Scores = Fragment<kRowTiles, kKeyTiles>;

  const FwdArgs& args_;
  const AttentionFwdParams& p_;
  FwdPlace& place_;
  const HeadTile& tile_;
  const Band& band_;
  Fragment<kRowTiles, kDimTiles> acc_o_ = {};  // in units of 1 / (kUsualScale 2^kRaised)
  RowValues<kRowTiles> row_sum_ = {};
  // [2 row_tiles][threads], in shared memory, since it seldom changes: of the rows that each lane holds, a score near
  // the running maximum, as unit() counts. The four lanes of a row have the same number.
  float* row_max_;

  __device__ __forceinline__ ForwardRows(const FwdArgs& args, FwdPlace& place, float* row_max)
      : args_(args), p_(args.p), place_(place), tile_(place.tile), band_(place.band), row_max_(row_max) {
    for_each_row<kRowTiles>([&](int r, int half) { row_max_of(r, half) = -INFINITY; });
  }

  __device__ __forceinline__ float& row_max_of(int row_tile, int half) const {
    return row_max_[(row_tile * 2 + half) * kPolicy.threads() + thread_again()];
  }
  // What scores are in when the softmax gets them.
  __device__ __forceinline__ ScoreUnit unit() const { return kScored ? ScoreUnit(1, kLog2e) : read_unit(place_.unit); }

  __device__ __forceinline__ int query_of(int row) const {
    return args_.packed_heads == 1 ? row : row / args_.packed_heads;
  }
  __device__ __forceinline__ int head_of(int row) const {
    return args_.packed_heads == 1 ? tile_.head : row % args_.packed_heads;
  }
  // Row that this lane holds: of the tile; of the sequence.
  __device__ __forceinline__ int tile_row(int row_tile, int half) const {
    const int thread = thread_again();
    return thread / 32 * 16 * kRowTiles + thread % 32 / 4 + row_tile * 16 + half * 8;
  }
  __device__ __forceinline__ int lane_row(int row_tile, int half) const {
    return tile_.first + tile_row(row_tile, half);
  }
  __device__ __forceinline__ bool inside(int row) const { return row < tile_.first + tile_.rows; }

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
    for_each_row<kRowTiles>([&](int r, int half) {
      const float ratio = ratios[tile_row(r, half)];
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) scores[r][n][half * 2] *= ratio, scores[r][n][half * 2 + 1] *= ratio;
    });
  }

  // The ratios of V, where there are any, go to the probabilities. Those of a row are then scaled by a power of two, so
  // that the largest is near the end of what halves can hold; its results are to be multiplied by `units`.
  __device__ __forceinline__ void suit_to_values(Scores& probs, RowValues<kRowTiles>& units, const float* ratios) {
    for_each_row<kRowTiles>([&](int r, int half) { units[r][half] = 1; });
    if (!ratios) return;
    scale_columns(probs, ratios);
    for_each_row<kRowTiles>([&](int r, int half) {
      float largest = 0;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        largest = fmaxf(largest, fmaxf(probs[r][n][half * 2], probs[r][n][half * 2 + 1]));
      }
      const float scale = scale_to(max_of_row(largest), 13);
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) probs[r][n][half * 2] *= scale, probs[r][n][half * 2 + 1] *= scale;
      units[r][half] = inverse_power(scale);
    });
  }

  // The scores are scaled here, since a bias comes between, or the scale may be negative.
  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int key) {
    const ScoreBias& bias = p_.mods.bias;
    const float scale = read_unit(place_.unit).scale;
    for_each_row<kRowTiles>([&](int r, int half) {
      const int row = this->lane_row(r, half), first = key + lane_column(0);
      const bool has_bias = bias.data != nullptr && inside(row);
      const float* from = nullptr;
      if (has_bias) {
        from = static_cast<const float*>(bias.data) + tile_.sequence.batch * bias.batch_stride +
               tile_.group * bias.group_stride + head_of(row) * bias.head_stride + query_of(row) * bias.q_stride +
               first * bias.k_stride;
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = scores[r][n][half * 2 + i];
          const bool adds = has_bias && first + n * 8 + i < tile_.sequence.seqlen_k;
          s = fmaf(s, scale, adds ? from[i * bias.k_stride] : 0.0f);
        }
        from += 8 * bias.k_stride;
      }
    });
  }

  __device__ __forceinline__ void mask(Scores& scores, int key) {
    const int first = tile_.first + thread_again() / 32 * 16 * kRowTiles;  // of this warp
    cuda::mask<kRowTiles, kKeyTiles>(scores, key, [&](int row) {
      const int query = query_of(first + row);
      return Range{band_.first_key(query), min(band_.last_key(query) + 1, tile_.sequence.seqlen_k)};
    });
  }

  // Scores become probabilities relative to row_max.
  __device__ __forceinline__ void softmax(Scores& scores) {
    const ScoreUnit unit = this->unit();
    RowValues<kRowTiles> row_max, largest;
    for_each_row<kRowTiles>([&](int r, int half) { row_max[r][half] = row_max_of(r, half); });
    row_maxima<kRowTiles, kKeyTiles>(largest, row_max, scores);
    const bool exact = is_large<kRowTiles>(largest, unit);
    if (__any_sync(kAllLanes, has_grown<kRowTiles>(largest, row_max, unit)) || exact) {
      RowValues<kRowTiles> shrink;
      raise<kRowTiles>(row_max, row_sum_, shrink, largest, unit, exact);
      rescale<kRowTiles, kDimTiles>(acc_o_, shrink);
      for_each_row<kRowTiles>([&](int r, int half) { row_max_of(r, half) = row_max[r][half]; });
      if (exact) take_differences<kRowTiles, kKeyTiles>(scores, row_max, unit);
    }
    exponentiate<kRaised, kRowTiles, kKeyTiles>(scores, row_max, row_sum_, unit, exact);
  }

  __device__ __forceinline__ void drop(Scores& scores, int key) {
    static_assert(kKeys % 32 == 0);
    const PhiloxKey philox = dropout_key(p_.dropout);
    const uint32_t head = tile_.drop_head(p_.shape);
    const int query = tile_.first + static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles;
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        KeptByLane<16 * kRowTiles, false> kept;
        kept.draw(i, philox, args_.drop_rule, head, query, key + n * 8);
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
    const int dim_v = static_cast<int>(p_.shape.head_dim_v);
    for_each_row<kRowTiles>([&](int r, int half) {
      const float sum = sum_of_row(row_sum_[r][half]);
      const int row = this->lane_row(r, half);
      if (!inside(row)) return;
      const float factor = sum == 0 ? 0.0f : static_cast<float>(args_.kept) / (kUsualScale * sum);
      const int64_t query = tile_.sequence.q_begin + query_of(row), batch = tile_.sequence.batch;
      const int head = head_of(row);
      if (threadIdx.x % 4 == 0) {
        const float row_max = natural_max(row_max_of(r, half), unit());
        store_lse(p_, row_lse(row_max, sum * kLowered), batch, tile_.group, head, query);
      }
      float* const out = static_cast<float*>(p_.out.data) + batch * p_.out.batch_stride + query * p_.out.seq_stride +
                         tile_.group * p_.out.group_stride + head * p_.out.head_stride;
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d) {
        store_2(out, lane_column(d), dim_v, args_.aligned_out,
                {acc_o_[r][d][half * 2] * factor, acc_o_[r][d][half * 2 + 1] * factor});
      }
    });
  }
};

}  // namespace xformers::cuda::sm80_fp32
