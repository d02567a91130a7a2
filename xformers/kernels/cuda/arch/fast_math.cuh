// The special-function unit's own precision (a few ulp of fp32), without the steps around it for denormal numbers:
// enough where results are rounded to 16 bits.
#pragma once

namespace xformers::cuda {

__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace xformers::cuda
