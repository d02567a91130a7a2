// The 16-bit floating-point types as they lie in memory, and their scalar conversions (round to nearest, ties to even).
#pragma once

#include <cstdint>
#include <cstring>

namespace xformers {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Forced inline: units compiled for different instruction sets must not share one copy.
#define XFORMERS_HALF_INLINE inline __attribute__((always_inline))

XFORMERS_HALF_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

XFORMERS_HALF_INLINE uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

XFORMERS_HALF_INLINE float to_float(BFloat16 x) { return float_from_bits(uint32_t{x.bits} << 16); }

XFORMERS_HALF_INLINE BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bits_from_float(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // NaN stays NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

XFORMERS_HALF_INLINE float to_float(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude << 13));  // Inf, NaN
  // Exponent re-based by a multiplication, which also normalises subnormals.
  const float value = float_from_bits(magnitude << 13) * float_from_bits((254u - 15u) << 23);
  return float_from_bits(bits_from_float(value) | sign);
}

XFORMERS_HALF_INLINE Float16 to_float16(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to Inf
  if (magnitude < 0x38800000u) {  // subnormal: let the addition of 0.5 align and round the fraction
    const uint32_t half = 126u << 23;
    return {static_cast<uint16_t>(sign | (bits_from_float(float_from_bits(magnitude) + float_from_bits(half)) - half))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13))};
}

XFORMERS_HALF_INLINE float to_compute(float x) { return x; }
XFORMERS_HALF_INLINE double to_compute(double x) { return x; }
XFORMERS_HALF_INLINE float to_compute(BFloat16 x) { return to_float(x); }
XFORMERS_HALF_INLINE float to_compute(Float16 x) { return to_float(x); }

template <class T>
XFORMERS_HALF_INLINE T from_compute(double x) {
  return static_cast<T>(x);
}
template <>
XFORMERS_HALF_INLINE BFloat16 from_compute<BFloat16>(double x) {
  return to_bfloat16(static_cast<float>(x));
}
template <>
XFORMERS_HALF_INLINE Float16 from_compute<Float16>(double x) {
  return to_float16(static_cast<float>(x));
}

}  // namespace xformers
