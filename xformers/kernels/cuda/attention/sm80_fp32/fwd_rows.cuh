// What a forward warp does with its rows between the products: bias, mask, online softmax, dropout; and their results.
// A lane holds rows lane / 4 and + 8 of each row tile.
#pragma once

#include "xformers/kernels/cuda/attention/block_rows.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/epilogue.cuh"
#include "xformers/kernels/cuda/attention/key_walk.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/places.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"

namespace xformers::cuda::sm80_fp32 {

struct NoBlocks {};

template <FwdPolicy kPolicy>
class ForwardRows {
 public:
  // What a block mask leaves, in shared memory; instances without score operations take none.
  using Blocks = std::conditional_t<kPolicy.scored, BlockRows<kPolicy.block_m(), kPolicy.block_n>, NoBlocks>;

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
  Blocks& blocks_;
  int turn_ = 0;  // of a block mask's walk

  __device__ __forceinline__ ForwardRows(const FwdArgs& args, FwdPlace& place, float* row_max, Blocks& blocks)
      : args_(args),
        p_(args.p),
        place_(place),
        tile_(place.tile),
        band_(place.band),
        row_max_(row_max),
        blocks_(blocks) {
    for_each_row<kRowTiles>([&](int r, int half) { row_max_of(r, half) = -INFINITY; });
  }

  __device__ __forceinline__ float& row_max_of(int row_tile, int half) const {
    return row_max_[(row_tile * 2 + half) * kPolicy.threads() + thread_again()];
  }
  // What scores are in when the softmax gets them.
  __device__ __forceinline__ ScoreUnit unit() const { return kScored ? ScoreUnit(1, kLog2e) : read_unit(place_.unit); }

  __device__ __forceinline__ TileRows rows() const { return {tile_, args_.packed_heads}; }
  // Row that this lane holds: of the tile; of the sequence.
  __device__ __forceinline__ int tile_row(int row_tile, int half) const {
    const int thread = thread_again();
    return thread / 32 * 16 * kRowTiles + thread % 32 / 4 + row_tile * 16 + half * 8;
  }
  __device__ __forceinline__ int lane_row(int row_tile, int half) const {
    return tile_.first + tile_row(row_tile, half);
  }
  // Of this warp, in the sequence.
  __device__ __forceinline__ int warp_row() const { return tile_.first + thread_again() / 32 * 16 * kRowTiles; }

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

  // The scores are scaled here, since something comes between, or the scale may be negative.
  __device__ __forceinline__ void modify_scores(Scores& scores, int key) {
    const ScoreBias& bias = p_.mods.bias;
    const int first = warp_row();
    const float scale =
        modify<true, false, kRowTiles, kKeyTiles>(scores, read_unit(place_.unit).scale, p_.mods, key, [&](int of_warp) {
          const int row = min(first + of_warp, tile_.first + tile_.rows - 1);
          return tilt_of_query(p_, tile_.sequence, tile_.group, rows().head_of(row), rows().query_of(row));
        });
    scale_and_add<kRowTiles, kKeyTiles>(
        scores, scale, key, tile_.sequence.seqlen_k, bias.k_stride, [&](int of_warp) -> const float* {
          const int row = first + of_warp;
          if (!bias.data || !rows().inside(row)) return nullptr;
          return static_cast<const float*>(bias.data) +
                 bias.offset(tile_.sequence.index, tile_.group, rows().head_of(row), rows().query_of(row), 0);
        });
  }

  __device__ __forceinline__ void mask(Scores& scores, int key) {
    const int first = warp_row();
    cuda::mask<kRowTiles, kKeyTiles>(scores, key,
                                     [&](int row) { return visible_keys(band_, rows().query_of(first + row)); });
  }

  __device__ __forceinline__ bool hides() const { return kScored && p_.blocks.present(); }
  // The first key of a step; at or behind the last key: there is none.
  __device__ __forceinline__ int key_of_turn(int turn) const {
    if constexpr (kScored) return blocks_.walk.at(turn).index * kKeys;
    return 0;
  }
  // That of the step behind this one. Behind a barrier, which comes after all have done the step before.
  __device__ __forceinline__ int next_turn() {
    if constexpr (kScored) {
      if (threadIdx.x < 32) blocks_.walk.find(p_.blocks, turn_ + 2);
    }
    return key_of_turn(++turn_);
  }
  // Of the step before which next_turn() was asked.
  __device__ __forceinline__ void mask_blocks(Scores& scores) {
    if constexpr (kScored) {
      constexpr int kRows = 16 * kRowTiles;
      const int first = thread_again() / 32 * kRows;
      if (blocks_.template seen_by<kRows>(first, turn_ - 1).is_full(0, kKeys / kSquare)) return;
      blocks_.template hide<kRowTiles, kKeyTiles>(scores, p_.blocks, turn_ - 1, first, 0);
    }
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
    const int query = tile_.first + static_cast<int>(threadIdx.x) / 32 * 16 * kRowTiles;
    cuda::drop<kRowTiles, kKeyTiles>(scores, dropout_key(p_.dropout), args_.drop_rule, tile_.drop_head(p_.shape), query,
                                     key);
  }

  __device__ __forceinline__ void finish() {
    constexpr float kLowered = 1 / float{1 << kRaised};
    const int dim_v = static_cast<int>(p_.shape.head_dim_v);
    for_each_row<kRowTiles>([&](int r, int half) {
      const float sum = sum_of_row(row_sum_[r][half]);
      const int row = this->lane_row(r, half);
      if (!rows().inside(row)) return;
      const RowPlace place = rows().place_of(row);
      const float kept = finish_row(args_, 0, tile_, place, {natural_max(row_max_of(r, half), unit()), sum * kLowered},
                                    threadIdx.x % 4 == 0);
      const float factor = sum == 0 ? 0.0f : static_cast<float>(args_.kept) / (kUsualScale * sum) * kept;
      float* const out = out_row<float>(p_.out, tile_, place);
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d) {
        store_pair(out, lane_column(d), dim_v, acc_o_[r][d][half * 2] * factor, acc_o_[r][d][half * 2 + 1] * factor,
                   args_.aligned_out);
      }
    });
  }
};

}  // namespace xformers::cuda::sm80_fp32
