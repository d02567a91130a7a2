// The statistics of a row.
#pragma once

#include <cuda_runtime.h>

#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/params/norm.h"

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

// Sums of squares within these bounds are as exact as C; those of parts of a row too, of which there are up to 32. The
// power of two for rows outside: 2^kFinest at most, so that eps times its square is a number.
template <class C>
struct Squares {
  static constexpr bool kWide = sizeof(C) == 8;
  static constexpr C kMost = static_cast<C>(kWide ? 0x1p1018 : 0x1p122),
                     kLeast = static_cast<C>(kWide ? 0x1p-900 : 0x1p-100);
  static constexpr int kFinest = kWide ? 700 : 75, kCoarsest = kWide ? -1022 : -126;

  static __device__ __forceinline__ bool fit(C sum, C reciprocal, C eps) {
    return sum <= kMost && fma(sum, reciprocal, eps) >= kLeast;
  }
  // Brings numbers up to `largest` near 1.
  static __device__ __forceinline__ C unit_for(C largest) {
    if (!(largest > 0) || isinf(largest)) return 1;
    return ldexp(C{1}, min(max(-ilogb(largest), kCoarsest), kFinest));
  }
};

// Mean and variance of a row from sums over x - guess, as long as the guess (from the row's first elements) is so near
// the mean that nothing cancels, and the squares are numbers.
template <class C>
struct Moments {
  C mean_deviation, variance;
  bool exact;

  __device__ __forceinline__ Moments(C sum, C sum_squares, C count, C reciprocal, C eps)
      : mean_deviation(mean_of(sum, count, reciprocal)) {
    const C square = mean_deviation * mean_deviation;
    variance = max(fma(-mean_deviation, mean_deviation, sum_squares * reciprocal), C{0});
    exact = square <= 4 * variance && Squares<C>::fit(sum_squares, reciprocal, eps);
  }
};

// z = (x - mean) * scale = (x * unit - mean_in_units) * scale_of_units. Of the RMS norm, mean is 0.
template <class C>
struct RowStatistics {
  C mean, scale;
  C unit, mean_in_units, scale_of_units;
};

// The exact way, for any numbers: pass after pass, in units of a power of two near the row's largest element.
// for_each(fn(item, column)) and x_of(item, column, numbers) as elsewhere; by all threads that have to do alike.
template <bool kLayer, int kVec, class C, class Reduce, class ForEach, class XOf>
__device__ __forceinline__ RowStatistics<C> exact_statistics(const NormShape& shape, Reduce& reduce,
                                                             const ForEach& for_each, const XOf& x_of) {
  const C count = static_cast<C>(shape.width), reciprocal = C{1} / count;
  RowStatistics<C> row;
  C value[1] = {0};
  const auto over_row = [&](const auto& add) {
    for_each([&](int item, auto column) {
      C x[kVec];
      x_of(item, column, x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) add(x[i]);
    });
  };
  over_row([&](C x) { value[0] = max(value[0], fabs(x)); });
  reduce(value, Max());
  row.unit = Squares<C>::unit_for(value[0]);
  row.mean_in_units = 0;
  if constexpr (kLayer) {
    value[0] = 0;
    over_row([&](C x) { value[0] += x * row.unit; });
    reduce(value, Sum());
    row.mean_in_units = mean_of(value[0], count, reciprocal);
  }
  value[0] = 0;
  over_row([&](C x) {
    const C deviation = fma(x, row.unit, -row.mean_in_units);
    value[0] += deviation * deviation;
  });
  reduce(value, Sum());
  row.scale_of_units = inverse_root(fma(static_cast<C>(shape.eps) * row.unit, row.unit, value[0] * reciprocal));
  row.mean = row.mean_in_units / row.unit;
  row.scale = row.scale_of_units * row.unit;
  return row;
}

}  // namespace xformers::cuda
