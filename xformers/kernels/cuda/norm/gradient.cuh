// The gradients of one row. With z = (x - mean) * scale and g = weight * dout:
//   dx = scale * (g - z * mean(g z) [- mean(g) for the layer norm]),  dweight = sum of dout * z,  dbias = sum of dout
#pragma once

#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/base/row_plan.h"
#include "xformers/kernels/cuda/base/row_share.cuh"
#include "xformers/kernels/cuda/norm/statistics.cuh"
#include "xformers/kernels/params/norm.h"

namespace xformers::cuda {

struct NormBackwardArgs {
  NormBwdParams p;
  RowPlan plan;
  void* partials = nullptr;    // [blocks, sums, width]
  void* statistics = nullptr;  // [rows, 2], mean and scale: of wide rows with weights
};

template <int kVec, class C>
__device__ __forceinline__ void times_weight(const NormBwdParams& p, int64_t column, C (&g)[kVec]) {
  if (!p.weight) return;
  C weight[kVec];
  load_as(p.weight, p.weight_dtype, column, weight);
#pragma unroll
  for (int i = 0; i < kVec; ++i) g[i] *= weight[i];
}

// What dx takes from the reductions over a row.
template <class C>
struct RowSums {
  C mean = 0, scale = 0;
  C z_factor = 0;  // mean(g z)
  C g_mean = 0;
};

// for_each(fn(item, column)); x_of and dout_of(item, column, numbers); weigh(item, column, numbers); first: x[0].
template <int kVec, bool kLayer, class C, class Reduce, class ForEach, class XOf, class DoutOf, class Weigh>
__device__ __forceinline__ RowSums<C> reduce_row(const NormBwdParams& p, const ThreadGroup& group, Reduce& reduce,
                                                 C first, const ForEach& for_each, const XOf& x_of,
                                                 const DoutOf& dout_of, const Weigh& weigh) {
  const C count = static_cast<C>(p.shape.width), reciprocal = C{1} / count, eps = static_cast<C>(p.shape.eps);
  RowSums<C> row;
  bool again;  // the squares did not fit, or the guess was far
  if constexpr (kLayer) {
    C sums[4] = {0, 0, 0, 0};  // of d = x - first, d^2, g, g d
    for_each([&](int item, auto column) {
      C x[kVec], g[kVec];
      x_of(item, column, x);
      dout_of(item, column, g);
      weigh(item, column, g);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const C deviation = x[i] - first;
        sums[0] += deviation;
        sums[1] += deviation * deviation;
        sums[2] += g[i];
        sums[3] += g[i] * deviation;
      }
    });
    reduce(sums, Sum());
    const Moments<C> moments(sums[0], sums[1], count, reciprocal, eps);
    row.mean = first + moments.mean_deviation;
    row.g_mean = sums[2] * reciprocal;
    row.scale = inverse_root(moments.variance + eps);
    row.z_factor = fma(-moments.mean_deviation, sums[2], sums[3]) * reciprocal * row.scale;
    again = group.any(!moments.exact);
  } else {
    C sums[2] = {0, 0};  // of x^2 and g x
    for_each([&](int item, auto column) {
      C x[kVec], g[kVec];
      x_of(item, column, x);
      dout_of(item, column, g);
      weigh(item, column, g);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sums[0] += x[i] * x[i];
        sums[1] += g[i] * x[i];
      }
    });
    reduce(sums, Sum());
    row.scale = inverse_root(sums[0] * reciprocal + eps);
    row.z_factor = sums[1] * reciprocal * row.scale;
    again = reduce.any_part(sums[0], [&](C squares) { return !Squares<C>::fit(squares, reciprocal, eps); });
  }
  if (again) {
    const RowStatistics<C> exact = exact_statistics<kLayer, kVec, C>(p.shape, reduce, for_each, x_of);
    C g_deviation[1] = {0};
    for_each([&](int item, auto column) {
      C x[kVec], g[kVec];
      x_of(item, column, x);
      dout_of(item, column, g);
      weigh(item, column, g);
#pragma unroll
      for (int i = 0; i < kVec; ++i) g_deviation[0] += g[i] * fma(x[i], exact.unit, -exact.mean_in_units);
    });
    reduce(g_deviation, Sum());
    row.mean = exact.mean;
    row.scale = exact.scale;
    row.z_factor = g_deviation[0] * reciprocal * exact.scale_of_units;
  }
  return row;
}

// x and g become z and dx.
template <int kVec, class C>
__device__ __forceinline__ void gradient_of(const RowSums<C>& row, C (&x)[kVec], C (&g)[kVec]) {
  const C offset = -row.g_mean * row.scale, factor = -row.z_factor * row.scale;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    x[i] = (x[i] - row.mean) * row.scale;
    g[i] = fma(row.scale, g[i], fma(factor, x[i], offset));
  }
}

}  // namespace xformers::cuda
