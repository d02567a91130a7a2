// Online softmax of one stream of decode_tile-inl.h. Scores are [keys][kRows]: a vector holds 16 / kRows keys of every
// row, and what belongs to a row is repeated for each of these keys. Needs AVX-512 and its bf16 conversions.
#pragma once

#include <immintrin.h>

#include "xformers/kernels/cpu/attention/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Of the keys in a vector: op over those of the same row, in all of its lanes.
template <int kRows, class Op>
HWY_INLINE __m512 over_keys(__m512 v, const Op& op) {
  if constexpr (kRows <= 8) v = op(v, _mm512_shuffle_f32x4(v, v, 0x4e));
  if constexpr (kRows <= 4) v = op(v, _mm512_shuffle_f32x4(v, v, 0xb1));
  return v;
}

// [16 keys][kRows] to [kRows][16 keys].
template <int kRows>
HWY_INLINE void transpose_keys(const float* from, __m512* to) {
  if constexpr (kRows == 4) {
    const __m512i by_row = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512 quad[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) quad[i] = _mm512_permutexvar_ps(by_row, _mm512_load_ps(from + 16 * i));
    const __m512 low0 = _mm512_shuffle_f32x4(quad[0], quad[1], 0x44),
                 low1 = _mm512_shuffle_f32x4(quad[2], quad[3], 0x44);
    const __m512 high0 = _mm512_shuffle_f32x4(quad[0], quad[1], 0xee);
    const __m512 high1 = _mm512_shuffle_f32x4(quad[2], quad[3], 0xee);
    to[0] = _mm512_shuffle_f32x4(low0, low1, 0x88);
    to[1] = _mm512_shuffle_f32x4(low0, low1, 0xdd);
    to[2] = _mm512_shuffle_f32x4(high0, high1, 0x88);
    to[3] = _mm512_shuffle_f32x4(high0, high1, 0xdd);
  } else {
    alignas(64) float wide[16 * 16], turned[16 * 16];
    if constexpr (kRows < 16) {
      for (int n = 0; n < 16; ++n) _mm256_store_ps(wide + 16 * n, _mm256_loadu_ps(from + kRows * n));
      for (int n = 0; n < 16; ++n) _mm256_store_ps(wide + 16 * n + 8, _mm256_setzero_ps());
      from = wide;
    }
    transpose_16x16(from, 16, turned, 16);
    for (int r = 0; r < kRows; ++r) to[r] = _mm512_load_ps(turned + 16 * r);
  }
}

struct StreamState {
  alignas(64) float max[16];
  alignas(64) float sum[16];  // per lane: total() adds up a row's

  HWY_INLINE void start() {
    for (int lane = 0; lane < 16; ++lane) max[lane] = -kInfinity<float>, sum[lane] = 0;
  }
  template <int kRows>
  HWY_INLINE float total(ptrdiff_t row) const {
    float result = 0;
    for (ptrdiff_t lane = row; lane < 16; lane += kRows) result += sum[lane];
    return result;
  }

  // Takes note of the scores' maxima. As in the tiled forward, they are only raised by scores that exceed them by more
  // than 2^8; true: they were, and what has been summed up so far must be multiplied by factor[row].
  template <int kRows>
  HWY_INLINE bool raise(const float* scores, ptrdiff_t num_tiles, float to_exponent, float* factor) {
    const __m512 scale = _mm512_set1_ps(to_exponent), lowest = _mm512_set1_ps(-hwy::HighestValue<float>());
    __m512 max0 = _mm512_load_ps(scores), max1 = max0;
    for (ptrdiff_t i = 0; i < num_tiles * kRows; i += 2) {
      max0 = _mm512_max_ps(max0, _mm512_load_ps(scores + 16 * i));
      max1 = _mm512_max_ps(max1, _mm512_load_ps(scores + 16 * i + 16));
    }
    const auto larger = [](__m512 a, __m512 b) HWY_ATTR { return _mm512_max_ps(a, b); };
    const __m512 seen = over_keys<kRows>(_mm512_max_ps(max0, max1), larger);
    const float highest = hwy::HighestValue<float>(), headroom = to_exponent < 8 / highest ? highest : 8 / to_exponent;
    const __m512 old = _mm512_load_ps(max);
    if (!_mm512_cmp_ps_mask(seen, _mm512_add_ps(old, _mm512_set1_ps(headroom)), _CMP_GT_OQ)) return false;
    const __m512 raised = _mm512_max_ps(old, seen);
    const Vec<float> change =
        exp2_vec<5>(Vec<float>{_mm512_mul_ps(_mm512_sub_ps(old, _mm512_max_ps(raised, lowest)), scale)});
    _mm512_store_ps(max, raised);
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), change.raw));
    _mm512_store_ps(factor, change.raw);
    return true;
  }

  // Probabilities of these scores relative to the maxima, [tiles][kRows][16 keys]: bf16 numbers as the even and as the
  // odd half of 32 bits, the other half 0.
  template <int kRows>
  HWY_INLINE void weigh(const float* scores, ptrdiff_t num_tiles, float to_exponent, uint32_t* even, uint32_t* odd) {
    const __m512 scale = _mm512_set1_ps(to_exponent), row_max = _mm512_load_ps(max);
    // -inf as the maximum would make -inf minus itself: such rows are taken relative to 0.
    const __mmask16 blind = _mm512_cmp_ps_mask(row_max, _mm512_set1_ps(-hwy::HighestValue<float>()), _CMP_LT_OQ);
    const __m512 base = _mm512_mask_blend_ps(blind, row_max, _mm512_setzero_ps());
    __m512 row_sum = _mm512_load_ps(sum);
    alignas(64) float weights[16 * kRows];
    for (ptrdiff_t t = 0; t < num_tiles; ++t, scores += 16 * kRows) {
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Vec<float> p = exp2_vec<Exp2Degree<BFloat16>::value>(
            Vec<float>{_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(scores + 16 * i), base), scale)});
        row_sum = _mm512_add_ps(row_sum, p.raw);
        _mm512_store_ps(weights + 16 * i, p.raw);
      }
      __m512 turned[kRows];
      transpose_keys<kRows>(weights, turned);
      for (int r = 0; r < kRows; ++r, even += 16, odd += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(turned[r])));
        _mm512_store_si512(even, low);
        _mm512_store_si512(odd, _mm512_slli_epi32(low, 16));
      }
    }
    _mm512_store_ps(sum, row_sum);
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
