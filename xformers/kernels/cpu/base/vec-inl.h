// Vector helpers on Highway: rows of any element type to and from the compute type (float, or double for double), 2^x,
// transposition. Compiled once per instruction set: the build defines XFORMERS_ISA_NAMESPACE and the
// flags. No include guard trick is needed, since one unit holds one instruction set.
#pragma once

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "xformers/kernels/base/half.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 512-bit vectors, with the instructions that only they have.
#if HWY_TARGET == HWY_AVX3
#define XFORMERS_AVX512 1
#else
#define XFORMERS_AVX512 0
#endif

template <class C>
using Tag = hn::ScalableTag<C>;
template <class C>
using Vec = hn::Vec<Tag<C>>;
template <class C>
HWY_INLINE constexpr ptrdiff_t lanes() {
  return static_cast<ptrdiff_t>(hn::MaxLanes(Tag<C>()));
}

// The compute type of an element type.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

HWY_INLINE constexpr ptrdiff_t min_of(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
HWY_INLINE constexpr ptrdiff_t max_of(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
HWY_INLINE constexpr ptrdiff_t round_up(ptrdiff_t x, ptrdiff_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// ---- one vector of elements, in the compute type ----
HWY_INLINE Vec<float> load_vec(const float* p) { return hn::LoadU(Tag<float>(), p); }
HWY_INLINE Vec<double> load_vec(const double* p) { return hn::LoadU(Tag<double>(), p); }
HWY_INLINE Vec<float> load_vec(const BFloat16* p) {
  const hn::Rebind<uint16_t, Tag<float>> d16;
  const hn::RebindToUnsigned<Tag<float>> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(Tag<float>(), hn::ShiftLeft<16>(bits));
}
HWY_INLINE Vec<float> load_vec(const Float16* p) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::Rebind<hwy::float16_t, Tag<float>> d16;
  return hn::PromoteTo(Tag<float>(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#else
  alignas(64) float widened[lanes<float>()];
  for (ptrdiff_t i = 0; i < lanes<float>(); ++i) widened[i] = to_float(p[i]);
  return hn::Load(Tag<float>(), widened);
#endif
}

HWY_INLINE void store_vec(Vec<float> v, float* p) { hn::StoreU(v, Tag<float>(), p); }
HWY_INLINE void store_vec(Vec<double> v, double* p) { hn::StoreU(v, Tag<double>(), p); }
// Round to nearest, ties to even; NaN stays NaN.
HWY_INLINE void store_vec(Vec<float> v, BFloat16* p) {
#if XFORMERS_AVX512 && defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.raw)));
  return;
#endif
  const hn::RebindToUnsigned<Tag<float>> d32;
  const hn::Rebind<uint16_t, Tag<float>> d16;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fffu)));
  const auto quiet_nan = hn::Or(bits, hn::Set(d32, 0x400000u));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto high = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet_nan, rounded));
  const hn::RebindToSigned<decltype(d32)> d_signed;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(d_signed, high)), d16, reinterpret_cast<uint16_t*>(p));
}
HWY_INLINE void store_vec(Vec<float> v, Float16* p) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::Rebind<hwy::float16_t, Tag<float>> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#else
  alignas(64) float wide[lanes<float>()];
  hn::Store(v, Tag<float>(), wide);
  for (ptrdiff_t i = 0; i < lanes<float>(); ++i) p[i] = to_float16(wide[i]);
#endif
}

// ---- rows ----
template <class T, class C>
HWY_INLINE void convert_row(const T* HWY_RESTRICT from, C* HWY_RESTRICT to, ptrdiff_t count) {
  ptrdiff_t i = 0;
  for (; i + lanes<C>() <= count; i += lanes<C>()) store_vec(load_vec(from + i), to + i);
  for (; i < count; ++i) to[i] = static_cast<C>(to_compute(from[i]));
}

// to = factor * from, rounded to T.
template <class T, class C>
HWY_INLINE void store_row(const C* HWY_RESTRICT from, C factor, T* HWY_RESTRICT to, ptrdiff_t count) {
  const auto scale = hn::Set(Tag<C>(), factor);
  ptrdiff_t i = 0;
  for (; i + lanes<C>() <= count; i += lanes<C>()) store_vec(hn::Mul(hn::LoadU(Tag<C>(), from + i), scale), to + i);
  for (; i < count; ++i) to[i] = from_compute<T>(from[i] * factor);
}

template <class C>
HWY_INLINE void zero_row(C* to, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = C(0);
}

// ---- 2^x ----
// Polynomials for 2^f, f in [0, 1), exactly 1 at 0: relative error 1.0e-4 (degree 3), 3.4e-6 (4), 9.4e-8 (5), from a
// minimax fit; the short ones are exactly 2 at 1 as well, which leaves no step.
template <int kDegree>
HWY_INLINE Vec<float> exp2_fraction(Vec<float> f) {
  const Tag<float> d;
  if constexpr (kDegree == 3) {
    auto p = hn::MulAdd(hn::Set(d, 0.0782679692f), f, hn::Set(d, 0.22630769f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.695424318f));
    return hn::MulAdd(p, f, hn::Set(d, 1.0f));
  } else if constexpr (kDegree == 4) {
    auto p = hn::MulAdd(hn::Set(d, 0.0135557475f), f, hn::Set(d, 0.0520323701f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.241379768f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.693032146f));
    return hn::MulAdd(p, f, hn::Set(d, 1.0f));
  } else {
    auto p = hn::MulAdd(hn::Set(d, 0.00186713005f), f, hn::Set(d, 0.00901703071f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.0557999127f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.240164444f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.693151295f));
    return hn::MulAdd(p, f, hn::Set(d, 1.0f));
  }
}

// What the rounding of the results to T leaves visible.
template <class T>
struct Exp2Degree {
  static constexpr int value = 5;
};
template <>
struct Exp2Degree<Float16> {
  static constexpr int value = 4;
};
template <>
struct Exp2Degree<BFloat16> {
  static constexpr int value = 3;
};

// Exactly 0 at -inf; NaN stays NaN; x at most 127.
template <int kDegree>
HWY_INLINE Vec<float> exp2_vec(Vec<float> x) {
#if XFORMERS_AVX512
  const Vec<float> fraction{_mm512_reduce_ps(x.raw, 0x09)};  // x - floor(x), no exceptions
  return Vec<float>{_mm512_scalef_ps(exp2_fraction<kDegree>(fraction).raw, x.raw)};
#else
  const Tag<float> d;
  const auto floor = hn::Floor(hn::Max(x, hn::Set(d, -127.0f)));
  const auto fraction = hn::Sub(x, floor);
  const hn::RebindToSigned<Tag<float>> di;
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, floor), hn::Set(di, 127))));
  const auto result = hn::Mul(exp2_fraction<kDegree>(fraction), power);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), result);
#endif
}
template <int kDegree>
HWY_INLINE Vec<double> exp2_vec(Vec<double> x) {
  const Tag<double> d;
  // x ln 2 in two parts: the first one's rounding alone would be |x| units of the result.
  const auto ln2 = hn::Set(d, 0.69314718055994530942), ln2_rest = hn::Set(d, 2.3190468138462996e-17);
  const auto bounded = hn::Max(x, hn::Set(d, -1000.0));
  const auto high = hn::Mul(bounded, ln2);
  const auto low = hn::MulAdd(bounded, ln2_rest, hn::MulSub(bounded, ln2, high));
  const auto power = hn::Exp(d, high);
  const auto result = hn::MulAdd(power, low, power);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -1000.0)), hn::IfThenElse(hn::IsNaN(x), x, result));
}

// ---- transposition of 32-bit and 64-bit elements ----
// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < cols. Writes whole tiles: the target needs room
// for rows and cols rounded up to 16, and the source must be readable likewise.
#if XFORMERS_AVX512
HWY_INLINE void transpose_16x16(const float* from, ptrdiff_t from_stride, float* to, ptrdiff_t to_stride) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {  // quads: a[i + c] holds column 4 * lane + c of rows i ... i + 3
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {  // 128-bit lanes
    const __m512 low0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88), high0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
    const __m512 low1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    const __m512 high1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_ps(to + c * to_stride, _mm512_shuffle_f32x4(low0, low1, 0x88));
    _mm512_storeu_ps(to + (8 + c) * to_stride, _mm512_shuffle_f32x4(low0, low1, 0xdd));
    _mm512_storeu_ps(to + (4 + c) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0x88));
    _mm512_storeu_ps(to + (12 + c) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0xdd));
  }
}
#endif

template <class C>
HWY_INLINE void transpose(const C* HWY_RESTRICT from, ptrdiff_t from_stride, C* HWY_RESTRICT to, ptrdiff_t to_stride,
                          ptrdiff_t rows, ptrdiff_t cols) {
#if XFORMERS_AVX512
  if constexpr (sizeof(C) == 4) {
    for (ptrdiff_t i = 0; i < rows; i += 16) {
      for (ptrdiff_t j = 0; j < cols; j += 16) {
        transpose_16x16(reinterpret_cast<const float*>(from) + i * from_stride + j, from_stride,
                        reinterpret_cast<float*>(to) + j * to_stride + i, to_stride);
      }
    }
    return;
  }
#endif
  for (ptrdiff_t i0 = 0; i0 < rows; i0 += 8) {  // blocks that stay in the first-level cache
    const ptrdiff_t i_end = min_of(i0 + 8, rows);
    for (ptrdiff_t j = 0; j < cols; ++j) {
      for (ptrdiff_t i = i0; i < i_end; ++i) to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
