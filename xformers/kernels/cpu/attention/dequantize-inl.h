// Rows of K and V that are stored as integers (KvQuantization): element = code * scale + shift, computed in the compute
// type of T and rounded to T. The product is exact, so that it makes no difference whether it is fused with the sum.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// What a coefficient word holds.
struct Coefficients {
  float scale, shift;
  HWY_INLINE explicit Coefficients(uint32_t word)
#if defined(__F16C__)
      : scale(_cvtsh_ss(static_cast<uint16_t>(word))), shift(_cvtsh_ss(static_cast<uint16_t>(word >> 16))){}
#else
      : scale(to_float(Float16{static_cast<uint16_t>(word)})),
        shift(to_float(Float16{static_cast<uint16_t>(word >> 16)})) {
  }
#endif
};

// Codes as numbers of the compute type: a vector of as many unsigned integers of 32 bits as it has lanes.
template <class C>
using CodeTag = hn::Rebind<uint32_t, Tag<C>>;
template <class C>
HWY_INLINE Vec<C> number_of(hn::Vec<CodeTag<C>> codes) {
  const auto whole = hn::BitCast(hn::RebindToSigned<CodeTag<C>>(), codes);
  if constexpr (sizeof(C) == 8) {
    return hn::PromoteTo(Tag<C>(), whole);
  } else {
    return hn::ConvertTo(Tag<C>(), whole);
  }
}

// A vector of 4-bit codes, the first one in the lowest bits of words[0]: as many as there are lanes.
template <class C>
HWY_INLINE Vec<C> int4_vec(const uint32_t* words, ptrdiff_t first) {
  const CodeTag<C> d;
  constexpr ptrdiff_t kLanes = lanes<C>();
  auto bits = hn::Set(d, words[0]);
  if constexpr (kLanes > 8) bits = hn::IfThenElse(hn::FirstN(d, 8), bits, hn::Set(d, words[1]));
  const auto place = hn::And(hn::Iota(d, static_cast<uint32_t>(first)), hn::Set(d, 7u));
  return number_of<C>(hn::And(hn::Shr(bits, hn::ShiftLeft<2>(place)), hn::Set(d, 15u)));
}

#if XFORMERS_AVX512
// 32 elements of a group, which can only be 16 different numbers: codes index a table of them.
HWY_INLINE void look_up_32(const uint32_t* words, __m512i table, void* to) {
  const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
  const __m512i low_nibbles = _mm512_set1_epi32(0x000f000f);
  const __m512i codes = _mm512_and_si512(_mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 12)), low_nibbles);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(codes, table));
}

// All elements that multiples of 32 cover, of a 16-bit type; returns how many.
template <class T>
HWY_INLINE ptrdiff_t look_up(const uint32_t* words, Coefficients coefficients, ptrdiff_t count, T* to) {
  alignas(64) T numbers[16];
  const Tag<float> d;
  store_vec(hn::MulAdd(hn::Iota(d, 0), hn::Set(d, coefficients.scale), hn::Set(d, coefficients.shift)), numbers);
  const __m512i table = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(numbers)));
  ptrdiff_t e = 0;
  for (; e + 32 <= count; e += 32) look_up_32(words + e / 8, table, to + e);
  return e;
}
#endif

// A row of int4: num_groups coefficient words, then num_groups * group_size / 8 words of codes.
template <class T>
HWY_INLINE void dequantize_int4(const uint32_t* row, ptrdiff_t num_groups, ptrdiff_t group_size, T* to) {
  using C = typename ComputeOf<T>::type;
  constexpr ptrdiff_t kLanes = lanes<C>();
  const uint32_t* const words = row + num_groups;
  for (ptrdiff_t group = 0; group < num_groups; ++group) {
    const Coefficients coefficients(row[group]);
    const auto scale = hn::Set(Tag<C>(), static_cast<C>(coefficients.scale)),
               shift = hn::Set(Tag<C>(), static_cast<C>(coefficients.shift));
    ptrdiff_t e = group * group_size;
    const ptrdiff_t end = e + group_size;
#if XFORMERS_AVX512
    if constexpr (sizeof(T) == 2) e += look_up(words + e / 8, coefficients, group_size, to + e);
#endif
    for (; e + kLanes <= end; e += kLanes)
      store_vec(hn::MulAdd(int4_vec<C>(words + e / 8, e % 8), scale, shift), to + e);
    for (; e < end; ++e) {
      const C code = static_cast<C>(words[e / 8] >> (e % 8 * 4) & 15u);
      to[e] = from_compute<T>(code * static_cast<C>(coefficients.scale) + static_cast<C>(coefficients.shift));
    }
  }
}

// e4m3 by the bits of a float: sign, exponent with the bias 7, three bits of fraction, subnormals, one NaN, no Inf.
HWY_INLINE float from_e4m3(uint32_t byte) {
  const uint32_t magnitude = byte & 0x7fu;
  if (magnitude == 0x7fu) return float_from_bits(0x7fc00000u);
  float value = float_from_bits((magnitude << 20) + (120u << 23));
  if (magnitude < 8) value = (value - 0.0078125f) * 2;  // no leading 1, and the exponent of the row above
  return (byte & 0x80u) ? -value : value;
}

#if XFORMERS_AVX512
// The bits of an fp16 number 2^8 times smaller, whatever the processor does with subnormals.
HWY_INLINE Vec<float> e4m3_vec(const uint8_t* codes) {
  const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m256i magnitude = _mm256_and_si256(bytes, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0x80)), 8);
  const __m256i number = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
  return Vec<float>{_mm512_cvtph_ps(_mm256_mask_mov_epi16(number, nan, _mm256_set1_epi16(0x7e00)))};
}
inline constexpr float kE4m3Factor = 256;
#else
inline constexpr float kE4m3Factor = 1;
template <class D32>
HWY_INLINE hn::Vec<hn::RebindToFloat<D32>> e4m3_bits(D32 d, hn::Vec<D32> bytes) {
  const hn::RebindToFloat<D32> df;
  const auto magnitude = hn::And(bytes, hn::Set(d, 0x7fu));
  const auto normal = hn::BitCast(df, hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(d, 120u << 23)));
  const auto tiny = hn::Sub(normal, hn::Set(df, 0.0078125f));
  auto value = hn::IfThenElse(hn::RebindMask(df, hn::Lt(magnitude, hn::Set(d, 8u))), hn::Add(tiny, tiny), normal);
  value = hn::IfThenElse(hn::RebindMask(df, hn::Eq(magnitude, hn::Set(d, 0x7fu))), hn::NaN(df), value);
  return hn::Or(value, hn::BitCast(df, hn::ShiftLeft<24>(hn::And(bytes, hn::Set(d, 0x80u)))));
}
HWY_INLINE Vec<float> e4m3_vec(const uint8_t* codes) {
  const CodeTag<float> d32;
  return e4m3_bits(d32, hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, Tag<float>>(), codes)));
}
#endif

// A row of fp8: dim / 4 words of codes; its coefficients lie elsewhere.
template <class T>
HWY_INLINE void dequantize_fp8(const uint32_t* row, uint32_t coefficient_word, ptrdiff_t dim, T* to) {
  using C = typename ComputeOf<T>::type;
  constexpr ptrdiff_t kLanes = lanes<C>();
  const auto* const codes = reinterpret_cast<const uint8_t*>(row);
  const Coefficients coefficients(coefficient_word);
  ptrdiff_t e = 0;
  if constexpr (sizeof(C) == 4) {
    const auto scale = hn::Set(Tag<C>(), coefficients.scale * kE4m3Factor),
               shift = hn::Set(Tag<C>(), coefficients.shift);
    for (; e + kLanes <= dim; e += kLanes) store_vec(hn::MulAdd(e4m3_vec(codes + e), scale, shift), to + e);
  }
  for (; e < dim; ++e) {
    to[e] = from_compute<T>(static_cast<C>(from_e4m3(codes[e])) * static_cast<C>(coefficients.scale) +
                            static_cast<C>(coefficients.shift));
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
