// The products of decode-inl.h on pairs of bf16 (vdpbf16ps): twice the multiplications of an instruction, and nothing
// is widened. Weights are rounded to bf16, as in the other kernels of this type.
//
//   S = Q K^T   pairs of neighbouring dims, as rows lie in memory
//   O += P V    pairs of neighbouring keys: two rows of V zipped, 32 dims at a time
#pragma once

#include "xformers/kernels/cpu/attention/decode_fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

struct Dpbf16Products {
  using T = BFloat16;
  using C = float;
  using Query = BFloat16;
  static constexpr ptrdiff_t kLanes = 16;
  static constexpr ptrdiff_t kStep = 32;
  static constexpr ptrdiff_t kValueKeys = 8;

  static HWY_INLINE void take_query(const T* q, ptrdiff_t dim, Query* to) {
    std::memcpy(to, q, dim * sizeof(T));
    std::memset(static_cast<void*>(to + dim), 0, (round_up(dim, kStep) - dim) * sizeof(T));
  }

  template <int kRows>
  static HWY_INLINE Vec<float> scores(const Query* q, ptrdiff_t q_stride, const T* const (&keys)[kLanes / kRows],
                                      ptrdiff_t dim) {
    constexpr int kTileKeys = kLanes / kRows;
    Vec<float> acc[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) acc[i] = Vec<float>{_mm512_setzero_ps()};
    const auto add = [&](ptrdiff_t c, __mmask32 dims) HWY_ATTR {
      __m512bh query[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) query[r] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(q + r * q_stride + c));
#pragma GCC unroll 16
      for (int j = 0; j < kTileKeys; ++j) {
        const auto key = reinterpret_cast<__m512bh>(load(keys[j] + c, dims));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
          acc[j * kRows + r].raw = _mm512_dpbf16_ps(acc[j * kRows + r].raw, query[r], key);
      }
    };
    ptrdiff_t c = 0;
    for (; c + kStep <= dim; c += kStep) add(c, kAll);
    if (c < dim) add(c, first(dim - c));
    return sum_each<kLanes, float>(acc);
  }

  template <int kRows>
  static HWY_INLINE void add_values(float* out, ptrdiff_t out_stride, const float* weights, const Rows<T>& v,
                                    ptrdiff_t count, ptrdiff_t dim_v, const float* factor) {
    alignas(64) uint32_t pairs[kValueKeys / 2 * 4];  // of up to four rows
    pair_keys<kRows>(weights, count, pairs);
    ptrdiff_t c = 0;
    for (; c + 2 * kStep <= dim_v; c += 2 * kStep)
      add_columns<kRows, 2>(out + c, out_stride, pairs, v, c, count, kAll, factor);
    for (; c + kStep <= dim_v; c += kStep) add_columns<kRows, 1>(out + c, out_stride, pairs, v, c, count, kAll, factor);
    if (c < dim_v) add_columns<kRows, 1>(out + c, out_stride, pairs, v, c, count, first(dim_v - c), factor);
  }

  // Of 32 dims, unpacking leaves the lower four of each eight in one vector, the upper four in the next.
  static HWY_INLINE void order_dims(float* out, ptrdiff_t dim_v) {
    for (ptrdiff_t c = 0; c < dim_v; c += kStep) {
      const __m512 lower = _mm512_loadu_ps(out + c), upper = _mm512_loadu_ps(out + c + 16);
      const __m512 low = _mm512_shuffle_f32x4(lower, upper, 0x44), high = _mm512_shuffle_f32x4(lower, upper, 0xee);
      _mm512_storeu_ps(out + c, _mm512_shuffle_f32x4(low, low, 0xd8));
      _mm512_storeu_ps(out + c + 16, _mm512_shuffle_f32x4(high, high, 0xd8));
    }
  }

 private:
  static constexpr __mmask32 kAll = ~__mmask32{0};
  static HWY_INLINE __mmask32 first(ptrdiff_t count) { return (__mmask32{1} << count) - 1; }  // count < 32
  static HWY_INLINE __m512i load(const T* p, __mmask32 dims) {
    return dims == kAll ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(dims, p);
  }

  // Weights [keys][kRows] as pairs of bf16 [keys / 2][kRows], of two neighbouring keys. Past the last key they are 0.
  template <int kRows>
  static HWY_INLINE void pair_keys(const float* weights, ptrdiff_t count, uint32_t* pairs) {
    constexpr auto order = [] {
      struct Order {
        alignas(32) uint16_t from[16];
      } order{};
      for (int i = 0; i < 16; ++i)
        order.from[i] = static_cast<uint16_t>((i / (2 * kRows) * 2 + i % 2) * kRows + i / 2 % kRows);
      return order;
    }();
    const __m256i from = _mm256_load_si256(reinterpret_cast<const __m256i*>(order.from));
    for (ptrdiff_t i = 0; i < count * kRows; i += 16) {
      const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(weights + i)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(pairs + i / 2), _mm256_permutexvar_epi16(from, rounded));
    }
  }

  // kGroups groups of 32 dims from c on, of which `dims` are there.
  template <int kRows, int kGroups>
  static HWY_INLINE void add_columns(float* out, ptrdiff_t out_stride, const uint32_t* pairs, const Rows<T>& v,
                                     ptrdiff_t c, ptrdiff_t count, __mmask32 dims, const float* factor) {
    __m512 acc[kRows][2 * kGroups];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 2 * kGroups; ++i)
        acc[r][i] = _mm512_mul_ps(_mm512_set1_ps(factor[r]), _mm512_loadu_ps(out + r * out_stride + i * 16));
    }
    const auto add = [&](ptrdiff_t n, bool both) HWY_ATTR {
      const T* const row = v.data + n * v.stride + c;
      __m512bh zipped[2 * kGroups];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const __m512i one = load(row + g * kStep, dims),
                      other = both ? load(row + v.stride + g * kStep, dims) : _mm512_setzero_si512();
        zipped[2 * g] = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(one, other));
        zipped[2 * g + 1] = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(one, other));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto p = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pairs[n / 2 * kRows + r])));
#pragma GCC unroll 4
        for (int i = 0; i < 2 * kGroups; ++i) acc[r][i] = _mm512_dpbf16_ps(acc[r][i], p, zipped[i]);
      }
    };
    ptrdiff_t n = 0;
    for (; n + 2 <= count; n += 2) add(n, true);
    if (n < count) add(n, false);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 2 * kGroups; ++i) _mm512_storeu_ps(out + r * out_stride + i * 16, acc[r][i]);
    }
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
