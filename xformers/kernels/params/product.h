// What a matrix product is asked to do: out = a b + bias, a [m, k], b [k, n], bias [n], out [m, n] without gaps; fp32
// accumulation, one rounding.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

struct ProductOperand {
  const void* data = nullptr;
  int64_t stride = 0;       // elements, between rows, or between columns where
  bool transposed = false;  // columns are contiguous
};

struct ProductParams {
  DType dtype = DType::kBFloat16;
  int64_t m = 0, n = 0, k = 0;
  ProductOperand a, b;
  const void* bias = nullptr;  // null: none
  void* out = nullptr;
};

}  // namespace xformers
