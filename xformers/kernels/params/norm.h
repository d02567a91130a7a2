// What the normalisation kernels are asked to do, over rows of `width` elements:
//   RMS:    y = x / sqrt(mean(x^2) + eps) * weight
//   layer:  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
// Statistics and products in fp32 (fp64 for fp64), one rounding. Strides in elements, between rows; each row is
// contiguous. Weight and bias are fp32 (fp64 for fp64), [width]; nullptr: 1 and 0. On CUDA they, and their gradients,
// may also have a 16-bit type: weight_dtype.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/rows.h"

namespace xformers {

enum class NormKind : uint8_t { kRms, kLayer };

struct NormShape {
  DType dtype = DType::kFloat32;
  NormKind kind = NormKind::kRms;
  int64_t rows = 0, width = 0;
  double eps = 0;
};

struct NormFwdParams {
  NormShape shape;
  Rows x;
  Rows increment;  // no data: none. Else x += increment in place, rounded to x's dtype, and the result is normalised;
                   // the statistics are those of the sum before it was rounded. RMS only.
  const void* weight = nullptr;
  const void* bias = nullptr;
  DType weight_dtype = DType::kFloat32;  // CUDA alone
  Rows out;
};

// Statistics are computed again from x, so that nothing but x has to be kept.
struct NormBwdParams {
  NormShape shape;
  Rows x, dout;
  const void* weight = nullptr;
  Rows dx;                  // no data: not wanted
  void* dweight = nullptr;  // [width], fp32 (fp64 for fp64); nullptr: not wanted
  void* dbias = nullptr;
  DType weight_dtype = DType::kFloat32;  // CUDA alone: of weight, dweight and dbias
};

}  // namespace xformers
