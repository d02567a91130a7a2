// Online softmax of a warp's rows (Milakov & Gimelshein 2018), step by step over their keys:
//
//   row_maxima      the largest score so far, over the row's lanes (and warps: the caller exchanges them)
//   raise, rescale  where it has grown by more than 2^8, which numbers in fp32 and the 16-bit types have room for
//   exponentiate    scores -> probabilities relative to row_max, a score near the largest
//   finish          row_sum over the row's lanes; natural_max: what it is relative to
//
// SoftmaxRows does these for rows whose state is in registers; the functions serve others too.
//
// A fragment holds x, and a score is fl(scale * x) in natural units: x are products of q and k, or, where a bias was
// added or the scale is not positive, scores themselves, and scale is 1. The difference to row_max is taken before the
// factor log2(e), so that every finite score is one (finfo.min times log2(e) is -inf). While all maxima of a warp are
// below 2^10, one fma, scale_log2 * x - scale_log2 * row_max, does the same to the rounding of fp32 scores; from then
// on (`exact`) x is replaced by what makes that fma exact, in a branch that ordinary rows never take.
//
// -inf means hidden. A NaN in x leaves row_max and makes row_sum NaN; a row that has seen nothing has row_sum 0, and no
// other has: its largest score alone adds 1.
#pragma once

#include <cfloat>

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/attention/fragment.cuh"

namespace xformers::cuda {

// What x counts.
struct ScoreUnit {
  float scale, scale_log2;  // positive; scale_log2 = scale * log2(e)
  float room;               // 8 / scale_log2: row_max is raised by no less

  ScoreUnit() = default;
  __host__ __device__ ScoreUnit(float scale, float scale_log2)
      : scale(scale), scale_log2(scale_log2), room(8 / scale_log2 < FLT_MAX ? 8 / scale_log2 : FLT_MAX) {}
};
inline constexpr float kLargeScore = 1024;  // a row_max from which on differences are taken first
inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// What differences are taken to: a row that has seen nothing keeps row_max -inf, which stands for 0 here.
template <class C>
__device__ __forceinline__ C softmax_origin(C row_max) {
  return row_max == -static_cast<C>(INFINITY) ? C(0) : row_max;
}

// The larger of row_max and the row's scores.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void row_maxima(RowValues<kRowTiles>& largest, const RowValues<kRowTiles>& row_max,
                                           const Fragment<kRowTiles, kColumnTiles>& x) {
  for_each_row<kRowTiles>([&](int r, int half) {
    float m = row_max[r][half];
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) m = fmaxf(m, fmaxf(x[r][n][half * 2], x[r][n][half * 2 + 1]));
    largest[r][half] = max_of_row(m);
  });
}

template <int kRowTiles>
__device__ __forceinline__ bool has_grown(const RowValues<kRowTiles>& largest, const RowValues<kRowTiles>& row_max,
                                          const ScoreUnit& unit) {
  bool grown = false;
  for_each_row<kRowTiles>([&](int r, int half) { grown |= largest[r][half] > row_max[r][half] + unit.room; });
  return grown;
}

// Whether scale_log2 * x - scale_log2 * row_max loses what differences of scores are. The same for all lanes.
template <int kRowTiles>
__device__ __forceinline__ bool is_large(const RowValues<kRowTiles>& row_max, const ScoreUnit& unit) {
  bool large = false;
  for_each_row<kRowTiles>(
      [&](int r, int half) { large |= fabsf(softmax_origin(row_max[r][half]) * unit.scale) >= kLargeScore; });
  return __any_sync(kAllLanes, large);
}

// row_max becomes `largest`; what was summed up relative to it becomes less, by `shrink`.
template <int kRowTiles>
__device__ __forceinline__ void raise(RowValues<kRowTiles>& row_max, RowValues<kRowTiles>& row_sum,
                                      RowValues<kRowTiles>& shrink, const RowValues<kRowTiles>& largest,
                                      const ScoreUnit& unit, bool exact) {
  for_each_row<kRowTiles>([&](int r, int half) {
    const float before = row_max[r][half], now = softmax_origin(largest[r][half]);
    shrink[r][half] = fast_exp2(exact ? (before * unit.scale - softmax_origin(now * unit.scale)) * kLog2e
                                      : before * unit.scale_log2 - now * unit.scale_log2);
    row_max[r][half] = largest[r][half];
    row_sum[r][half] *= shrink[r][half];
  });
}
template <int kRowTiles, int kDimTiles>
__device__ __forceinline__ void rescale(Fragment<kRowTiles, kDimTiles>& acc_o, const RowValues<kRowTiles>& shrink) {
  for_each_row<kRowTiles>([&](int r, int half) {
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      acc_o[r][d][half * 2] *= shrink[r][half], acc_o[r][d][half * 2 + 1] *= shrink[r][half];
    }
  });
}

// x -> what differs from 0 as its score does from row_max: exponentiate(exact) then takes no origin away.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void take_differences(Fragment<kRowTiles, kColumnTiles>& x,
                                                 const RowValues<kRowTiles>& row_max, const ScoreUnit& unit) {
  const float inverse = fast_reciprocal(unit.scale);
  for_each_row<kRowTiles>([&](int r, int half) {
    const float from = softmax_origin(__fmul_rn(row_max[r][half], unit.scale));
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& at = x[r][n][half * 2 + i];
        at = __fsub_rn(__fmul_rn(at, unit.scale), from) * inverse;
      }
  });
}

// x -> probabilities relative to row_max, times 2^kRaised; row_sum grows by this lane's.
template <int kRaised = 0, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void exponentiate(Fragment<kRowTiles, kColumnTiles>& x, const RowValues<kRowTiles>& row_max,
                                             RowValues<kRowTiles>& row_sum, const ScoreUnit& unit, bool exact) {
  for_each_row<kRowTiles>([&](int r, int half) {
    const bool no_origin = exact || row_max[r][half] == -INFINITY;
    const float from = (no_origin ? 0.0f : row_max[r][half]) * unit.scale_log2 - kRaised;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& at = x[r][n][half * 2 + i];
        at = fast_exp2(fmaf(at, unit.scale_log2, -from));
        sum += at;
      }
    row_sum[r][half] += sum;
  });
}

// The row's largest score in natural units, as probabilities were taken relative to it.
__device__ __forceinline__ float natural_max(float row_max, const ScoreUnit& unit) {
  const float score = row_max * unit.scale;
  return fabsf(score) < kLargeScore ? row_max * unit.scale_log2 * kLn2 : score;
}

// A warp's rows. Where more warps have keys of the same rows, exchange(values, combine) makes values[r][half] into
// combine(mine, theirs); all of them take the same branches then.
struct OneWarp {
  template <class Values, class Combine>
  __device__ __forceinline__ void operator()(Values&, const Combine&) const {}
};
template <int kRowTiles>
struct SoftmaxRows {
  RowValues<kRowTiles> row_max, row_sum;  // row_sum: this lane's and warp's part, until finish()
  bool exact = false;
  bool near = false;  // row_max are scores that step_near() may count from

  __device__ __forceinline__ SoftmaxRows() {
    for_each_row<kRowTiles>([&](int r, int half) { row_max[r][half] = -INFINITY, row_sum[r][half] = 0; });
  }

  // x of one step -> probabilities.
  template <int kColumnTiles, int kDimTiles, class Exchange = OneWarp>
  __device__ __forceinline__ void step(Fragment<kRowTiles, kColumnTiles>& x, Fragment<kRowTiles, kDimTiles>& acc_o,
                                       const ScoreUnit& unit, const Exchange& exchange = {}) {
    step_with<kColumnTiles>(x, unit, exchange,
                            [&](const RowValues<kRowTiles>& shrink) { rescale<kRowTiles, kDimTiles>(acc_o, shrink); });
  }

  // The same while products still add to acc_o: whether it is to be multiplied by `shrink` afterwards.
  template <int kColumnTiles>
  __device__ __forceinline__ bool step_ahead(Fragment<kRowTiles, kColumnTiles>& x, RowValues<kRowTiles>& shrink,
                                             const ScoreUnit& unit) {
    bool raised = false;
    step_with<kColumnTiles>(x, unit, OneWarp(), [&](const RowValues<kRowTiles>& by) {
      raised = true;
      bool seen = true;
      for_each_row<kRowTiles>([&](int r, int half) {
        shrink[r][half] = by[r][half];
        seen &= row_max[r][half] > -INFINITY;
      });
      near = __all_sync(kAllLanes, seen) && !exact;
    });
    return raised;
  }

  // A step without looking for the maximum: most rows' first keys tell where the others are. Where a probability turns
  // out larger than 2^12 or NaN (any(bool): over all who share the products), false: x is lost, row_sum is as it was,
  // and step_ahead() is due with x anew.
  template <int kColumnTiles, class Any>
  __device__ __forceinline__ bool step_near(Fragment<kRowTiles, kColumnTiles>& x, const ScoreUnit& unit,
                                            const Any& any) {
    RowValues<kRowTiles> sum = {};
    bool far = !near;
    exponentiate<0, kRowTiles, kColumnTiles>(x, row_max, sum, unit, false);
    for_each_row<kRowTiles>([&](int r, int half) { far |= !(sum[r][half] <= 4096); });
    if (any(far)) return false;
    for_each_row<kRowTiles>([&](int r, int half) { row_sum[r][half] += sum[r][half]; });
    return true;
  }

  template <class Exchange = OneWarp>
  __device__ __forceinline__ void finish(const Exchange& exchange = {}) {
    for_each_row<kRowTiles>([&](int r, int half) { row_sum[r][half] = sum_of_row(row_sum[r][half]); });
    exchange(row_sum, [](float a, float b) { return a + b; });
  }

 private:
  template <int kColumnTiles, class Exchange, class Raised>
  __device__ __forceinline__ void step_with(Fragment<kRowTiles, kColumnTiles>& x, const ScoreUnit& unit,
                                            const Exchange& exchange, const Raised& raised) {
    RowValues<kRowTiles> largest;
    row_maxima<kRowTiles, kColumnTiles>(largest, row_max, x);
    exchange(largest, [](float a, float b) { return fmaxf(a, b); });
    if (__any_sync(kAllLanes, has_grown<kRowTiles>(largest, row_max, unit) || exact)) {
      exact = is_large<kRowTiles>(largest, unit);
      RowValues<kRowTiles> shrink;
      raise<kRowTiles>(row_max, row_sum, shrink, largest, unit, exact);
      raised(shrink);
      if (exact) take_differences<kRowTiles, kColumnTiles>(x, row_max, unit);
    }
    exponentiate<0, kRowTiles, kColumnTiles>(x, row_max, row_sum, unit, exact);
  }
};

}  // namespace xformers::cuda
