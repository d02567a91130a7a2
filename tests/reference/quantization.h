// What integers of KvQuantization stand for, element by element.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "tests/reference/rounding.h"

namespace xformers::reference {

inline double from_e4m3_bits(uint32_t byte) {
  const int sign = byte >> 7 & 1, exponent = byte >> 3 & 15, fraction = byte & 7;
  if (exponent == 15 && fraction == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 7 - 3);
  return sign ? -magnitude : magnitude;
}

// code * scale + shift in fp32 (fp64 for fp64), rounded to dtype. The word holds two fp16 numbers, scale in its low
// half.
inline double dequantized(DType dtype, double code, uint32_t scale_shift) {
  const double scale = from_float16_bits(static_cast<uint16_t>(scale_shift)),
               shift = from_float16_bits(static_cast<uint16_t>(scale_shift >> 16));
  const double exact = code * scale + shift;  // the product is exact
  return dtype == DType::kFloat64 ? exact : round_to(dtype, static_cast<float>(exact));
}

inline double dequantized_int4(DType dtype, const uint32_t* row, int64_t num_groups, int64_t dim, int64_t element) {
  const uint32_t code = row[num_groups + element / 8] >> (element % 8 * 4) & 15;
  return dequantized(dtype, code, row[element / (dim / num_groups)]);
}

inline double dequantized_fp8(DType dtype, const uint32_t* row, uint32_t scale_shift, int64_t element) {
  return dequantized(dtype, from_e4m3_bits(row[element / 4] >> (element % 4 * 8) & 255), scale_shift);
}

}  // namespace xformers::reference
