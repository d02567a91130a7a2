// What the softmax kernels are asked to do, row by row over x [outer0, outer1, rows, width], contiguous:
//   s = x + mask;  softmax: y = exp(s - max(s)) / sum(exp(s - max(s)));  log: y = s - max(s) - log(sum(exp(s -
//   max(s))))
// In fp32 (fp64 for fp64) with one rounding. A row of which nothing is left (all of s is -inf) is NaN.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

struct SoftmaxShape {
  DType dtype = DType::kFloat32;
  bool log = false;
  bool causal = false;  // row r sees the columns up to r; behind them y is 0 (log: -inf) and x is not looked at
  int64_t outer0 = 1, outer1 = 1, rows = 0, width = 0;
};

// Added to x; in x's dtype. Strides in elements, 0 where it repeats; its columns are contiguous.
struct SoftmaxMask {
  const void* data = nullptr;  // null: none
  int64_t outer0_stride = 0, outer1_stride = 0, row_stride = 0;
};

struct SoftmaxFwdParams {
  SoftmaxShape shape;
  const void* x = nullptr;
  SoftmaxMask mask;
  void* out = nullptr;  // contiguous, like x
};

// From the result alone:  softmax: dx = y * (dy - sum(dy * y));  log: dx = dy - exp(y) * sum(dy)
// Sums over the columns that the row sees; dx is 0 in the others.
struct SoftmaxBwdParams {
  SoftmaxShape shape;
  const void* out = nullptr;
  const void* dout = nullptr;
  void* dx = nullptr;
};

}  // namespace xformers
