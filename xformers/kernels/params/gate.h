// What the gate of SwiGLU is asked to do: h = silu(x1) * x2, silu(x) = x / (1 + exp(-x)), element by element, in fp32
// (fp64 for fp64) with one rounding. Strides in elements, between rows; each row is contiguous.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/rows.h"

namespace xformers {

using GateRows = Rows;

struct GateFwdParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, width = 0;
  Rows x1, x2, h;
};

// dx2 = dh * silu(x1), dx1 = dh * x2 * s * (1 + x1 * (1 - s)) with s = 1 / (1 + exp(-x1)); h is computed again, so that
// nobody has to keep it. h may lie on dh.
struct GateBwdParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, width = 0;
  Rows x1, x2, dh, dx1, dx2;
  Rows h;  // no data: not wanted
};

}  // namespace xformers
