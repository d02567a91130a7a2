// What the normalisation kernels are asked to do, over rows of `width` elements:
//   RMS:    y = x / sqrt(mean(x^2) + eps) * weight
//   layer:  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
// Statistics and products in fp32 (fp64 for fp64), one rounding. Strides in elements, between rows; each row is
// contiguous. Weight and bias, [width] (nullptr: 1 and 0), and their gradients are of weight_dtype: fp32 (fp64 for
// fp64), on CUDA also that of 16-bit rows. Rows whose squares overflow or vanish are computed in units of a power of
// two.
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
                   // the statistics are those of the sum before it was rounded (after, where squares do not fit).
                   // RMS only.
  const void* weight = nullptr;
  const void* bias = nullptr;
  DType weight_dtype = compute_dtype(shape.dtype);
  Rows out;
};

// A layer norm of a sum: norm.x = update + scale * residual, rounded, is written and then normalised.
struct NormOfSumParams {
  NormFwdParams norm;
  Rows update, residual;
  double scale = 1;
};

// Statistics are computed again from x, so that nothing but x has to be kept.
struct NormBwdParams {
  NormShape shape;
  Rows x, dout;
  const void* weight = nullptr;
  Rows dx;                  // no data: not wanted
  void* dweight = nullptr;  // [width]; nullptr: not wanted
  void* dbias = nullptr;    // of the layer norm alone
  DType weight_dtype = compute_dtype(shape.dtype);
};

}  // namespace xformers
