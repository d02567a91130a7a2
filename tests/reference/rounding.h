// Rounding to the element types, written apart from the kernels: the hardware's or compiler's own conversions only.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "xformers/kernels/base/dtype.h"

namespace xformers::reference {

// Nearest bfloat16, ties to even, as its bits.
inline uint16_t to_bfloat16_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float from_bfloat16_bits(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using Float16 = __fp16;  // g++ 12 has no other name for it on Arm
#else
using Float16 = _Float16;
#endif
inline uint16_t to_float16_bits(float x) { return std::bit_cast<uint16_t>(static_cast<Float16>(x)); }
inline float from_float16_bits(uint16_t bits) { return static_cast<float>(std::bit_cast<Float16>(bits)); }

// Half the distance between 1 and the next number: the largest relative error of one rounding.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 0x1p-53;
    case DType::kFloat32: return 0x1p-24;
    case DType::kFloat16: return 0x1p-11;
    case DType::kBFloat16: return 0x1p-8;
  }
  return 0;
}

// One element at `data`, as a double.
inline double load(DType dtype, const void* data) {
  uint16_t bits;
  float single;
  double wide;
  switch (dtype) {
    case DType::kFloat64: return std::memcpy(&wide, data, sizeof wide), wide;
    case DType::kFloat32: return std::memcpy(&single, data, sizeof single), single;
    case DType::kBFloat16: return std::memcpy(&bits, data, sizeof bits), from_bfloat16_bits(bits);
    case DType::kFloat16: return std::memcpy(&bits, data, sizeof bits), from_float16_bits(bits);
  }
  return 0;
}

inline void store(DType dtype, void* data, double value) {
  const float single = static_cast<float>(value);
  const uint16_t bits = dtype == DType::kBFloat16 ? to_bfloat16_bits(single) : to_float16_bits(single);
  switch (dtype) {
    case DType::kFloat64: std::memcpy(data, &value, sizeof value); break;
    case DType::kFloat32: std::memcpy(data, &single, sizeof single); break;
    case DType::kBFloat16:
    case DType::kFloat16: std::memcpy(data, &bits, sizeof bits); break;
  }
}

inline double round_to(DType dtype, double value) {
  double element = 0;
  store(dtype, &element, value);
  return load(dtype, &element);
}

}  // namespace xformers::reference
