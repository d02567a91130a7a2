// What softmax's forward and backward share: powers, and where a row lies and what it sees.
#pragma once

#include "xformers/kernels/cuda/base/divide.h"
#include "xformers/kernels/cuda/base/row_plan.h"
#include "xformers/kernels/cuda/base/row_share.cuh"
#include "xformers/kernels/params/softmax.h"

namespace xformers::cuda {

constexpr int kThreads = 256;  // of a block, where a row needs no more
template <class T>
constexpr int kMaxThreads = sizeof(T) == 8 ? 512 : 1024;

// exp(x) as exactly as an element of type T needs it; x <= 0, -inf or NaN.
template <class T>
__device__ __forceinline__ Compute<T> exp_as(Compute<T> x) {
  if constexpr (sizeof(T) == 2) {
    constexpr float kLog2E = 1.4426950408889634f;
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * kLog2E));
    return power;
  } else if constexpr (sizeof(T) == 4) {
    return expf(x);
  } else {
    return exp(x);
  }
}

template <class C>
__device__ __forceinline__ C lowest() {
  return static_cast<C>(-INFINITY);
}

struct SoftmaxRows {
  int64_t count = 0, width = 0;  // count = outer0 * outer1 * rows
  bool causal = false, log = false;
  Divisor rows, outer1;
  int64_t rows_size = 1, outer1_size = 1;

  explicit SoftmaxRows(const SoftmaxShape& s)
      : count(s.outer0 * s.outer1 * s.rows),
        width(s.width),
        causal(s.causal),
        log(s.log),
        rows(s.rows),
        outer1(s.outer1),
        rows_size(s.rows),
        outer1_size(s.outer1) {}

  // Columns [0, visible) are seen by row `index` of all.
  __device__ __forceinline__ int64_t visible(int64_t index) const {
    if (!causal) return width;
    const int64_t row = index - rows.quotient(index) * rows_size;
    return row + 1 < width ? row + 1 : width;
  }
  __device__ __forceinline__ int64_t mask_offset(const SoftmaxMask& mask, int64_t index) const {
    const int64_t outer = rows.quotient(index), outer0 = outer1.quotient(outer);
    return outer0 * mask.outer0_stride + (outer - outer0 * outer1_size) * mask.outer1_stride +
           (index - outer * rows_size) * mask.row_stride;
  }
};

}  // namespace xformers::cuda
