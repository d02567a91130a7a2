// What softmax's forward and backward share: powers, and where a row lies and what it sees.
#pragma once

#include <algorithm>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/base/row_plan.h"
#include "xformers/kernels/cuda/base/row_share.cuh"
#include "xformers/kernels/params/softmax.h"

namespace xformers::cuda {

// Threads of a block whose rows are in registers: few enough for many blocks per multiprocessor, whose loads, exchanges
// and stores overlap.
constexpr int kThreads = 256, kMaxThreads = 512;

// exp(x) as exactly as an element of type T needs it; x <= 0, -inf or NaN.
template <class T>
__device__ __forceinline__ Compute<T> exp_as(Compute<T> x) {
  if constexpr (sizeof(T) == 2) {
    return fast_exp2(x * 1.4426950408889634f);
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

// What a set of scores contributes to a row: their maximum, and the sum of their powers relative to it. NaN is in the
// sum alone. Nothing, or only -inf, contributes (-inf, 0).
template <class T>
struct SoftmaxPart {
  using C = Compute<T>;
  C top = lowest<C>(), sum = 0;

  // What scores are taken relative to: -inf minus itself would be NaN.
  __device__ __forceinline__ C base() const { return top == lowest<C>() ? C{0} : top; }
  // Factor for powers relative to base().
  __device__ __forceinline__ C relative_to(C higher) const {
    return top == lowest<C>() ? C{1} : exp_as<T>(top - higher);
  }
};

// The parts of all threads of a group as one, in one exchange. All threads of a block construct and call it, once.
template <class T>
class SoftmaxMerge {
 public:
  using C = Compute<T>;
  struct Shared {
    C top[32], sum[32];  // one per warp of the block
  };

  __device__ __forceinline__ SoftmaxMerge(Shared& shared, const ThreadGroup& group) : shared_(shared), group_(group) {}

  __device__ __forceinline__ SoftmaxPart<T> operator()(const SoftmaxPart<T>& own) const {
    SoftmaxPart<T> all = in_warp(own, group_.size < 32 ? group_.size : 32);
    if (group_.size <= 32) return all;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = group_.size / 32;
    if (lane == 0) shared_.top[warp] = all.top, shared_.sum[warp] = all.sum;
    __syncthreads();
    const int other = group_.index * warps + lane;
    all.top = lane < warps ? shared_.top[other] : lowest<C>();
    all.sum = lane < warps ? shared_.sum[other] : C{0};
    return in_warp(all, 32);
  }

 private:
  static __device__ __forceinline__ SoftmaxPart<T> in_warp(const SoftmaxPart<T>& own, int lanes) {
    SoftmaxPart<T> all;
    all.top = warp_reduce(own.top, Max(), lanes);
    all.sum = warp_reduce(own.sum * own.relative_to(all.top), Sum(), lanes);
    return all;
  }

  Shared& shared_;
  ThreadGroup group_;
};

struct SoftmaxRows {
  int64_t count = 0, width = 0;  // count = outer0 * outer1 * rows
  bool causal = false, log = false;
  Divisor<int64_t> rows, outer1;

  explicit SoftmaxRows(const SoftmaxShape& s)
      : count(s.outer0 * s.outer1 * s.rows),
        width(s.width),
        causal(s.causal),
        log(s.log),
        rows(std::max<int64_t>(s.rows, 1)),
        outer1(std::max<int64_t>(s.outer1, 1)) {}

  // Columns [0, visible) are seen by row `index` of all.
  __device__ __forceinline__ int64_t visible(int64_t index) const {
    if (!causal) return width;
    const int64_t row = rows.divide(index).rest;
    return row + 1 < width ? row + 1 : width;
  }
  __device__ __forceinline__ int64_t mask_offset(const SoftmaxMask& mask, int64_t index) const {
    const auto [outer, row] = rows.divide(index);
    const auto [place0, place1] = outer1.divide(outer);
    return place0 * mask.outer0_stride + place1 * mask.outer1_stride + row * mask.row_stride;
  }
};

struct SoftmaxForwardArgs {
  SoftmaxFwdParams p;
  SoftmaxRows rows;
  RowPlan plan;
};

struct SoftmaxBackwardArgs {
  SoftmaxBwdParams p;
  SoftmaxRows rows;
  RowPlan plan;
};

}  // namespace xformers::cuda
