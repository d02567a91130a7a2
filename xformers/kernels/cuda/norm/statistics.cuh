// The statistics of a row.
#pragma once

#include <cuda_runtime.h>

namespace xformers::cuda {

// 1 / sqrt(x) to within a unit in the last place: the GPU's own result, and a step of Newton's.
__device__ __forceinline__ float inverse_root(float x) {
  const float y = rsqrtf(x), error = fmaf(-x * y, y, 1.0f);
  return fabsf(error) < 1e-3f ? fmaf(0.5f * y, error, y) : y;  // not of 0, infinity and NaN
}
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }

// sum / count by the reciprocal of count, corrected to the nearest number or its neighbour.
template <class C>
__device__ __forceinline__ C mean_of(C sum, C count, C reciprocal) {
  const C mean = sum * reciprocal;
  return fma(fma(-mean, count, sum), reciprocal, mean);
}

// Mean and variance of a row from sums over x - guess, as long as the guess (from the row's first elements) is so near
// the mean that nothing cancels.
template <class C>
struct Moments {
  C mean_deviation, variance;
  bool exact;

  __device__ __forceinline__ Moments(C sum, C sum_squares, C count, C reciprocal)
      : mean_deviation(mean_of(sum, count, reciprocal)) {
    const C square = mean_deviation * mean_deviation;
    variance = max(fma(-mean_deviation, mean_deviation, sum_squares * reciprocal), C{0});
    exact = square <= 4 * variance;
  }
};

}  // namespace xformers::cuda
