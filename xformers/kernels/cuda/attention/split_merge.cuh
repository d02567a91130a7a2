// The softmax of a row whose keys were worked on in parts: what a part leaves behind, and what it counts for.
//
//   part i      row_max_i = max(scores), row_sum_i = sum(exp(scores - row_max_i)), out_i = sum(exp(...) v) / row_sum_i
//   together    m = max(row_max_i), share_i = row_sum_i exp(row_max_i - m), out = sum(share_i out_i) / sum(share_i)
//
// Scores and maxima are in natural units. A part whose keys are all hidden has row_max -inf and row_sum 0 and counts
// for nothing, whatever the others are; row_sum is not 0 elsewhere, since row_max is one of the scores. A NaN score
// makes row_sum NaN (row_max passes it by, and is -inf where every score is NaN), and so out and lse.
#pragma once

#include <cuda_runtime.h>

#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/softmax.cuh"

namespace xformers::cuda {

// exp(row_max - most): what brings sums relative to row_max to those relative to `most`, which is at least as large.
__device__ __forceinline__ float weight_of(float row_max, float most) {
  return fast_exp2((row_max - softmax_origin(most)) * kLog2e);
}
__device__ __forceinline__ float share_of(const PartStats& part, float most) {
  return part.row_sum * weight_of(part.row_max, most);
}

// What results are multiplied by: 0 for a row that sees no key.
template <class C>
__device__ __forceinline__ C inverse_of(C row_sum) {
  return row_sum == 0 ? C(0) : 1 / row_sum;
}

// The log-sum-exp of a row in two numbers (AttentionFwdParams::lse, lse_low).
template <class C>
struct RowLse {
  C lse, low;
};
template <class C>
__device__ __forceinline__ RowLse<C> row_lse(C row_max, C row_sum) {
  if (row_sum == 0) return {-static_cast<C>(INFINITY), 0};
  const C log_sum = log(row_sum), lse = row_max + log_sum;
  return {lse, isfinite(lse) ? (row_max - lse) + log_sum : C(0)};
}

// Writes those of them that are wanted. query: in the batch row; head: of the group.
template <class C>
__device__ __forceinline__ void store_lse(const AttentionFwdParams& p, const RowLse<C>& x, int64_t batch, int64_t group,
                                          int64_t head, int64_t query) {
  const auto store = [&](const RowTensor& t, C value) {
    if (!t.data) return;
    static_cast<C*>(t.data)[batch * t.batch_stride + group * t.group_stride + head * t.head_stride + query] = value;
  };
  store(p.lse, x.lse);
  store(p.lse_low, x.low);
}

// What forward wrote; the first number is +inf where a query sees no key, so that exp(score - lse) is 0.
template <class C>
__device__ __forceinline__ RowLse<C> load_lse(const AttentionBwdParams& p, int64_t batch, int64_t group, int64_t head,
                                              int64_t query) {
  const auto load = [&](const RowTensor& t) {
    return static_cast<const C*>(
        t.data)[batch * t.batch_stride + group * t.group_stride + head * t.head_stride + query];
  };
  const C lse = load(p.lse);
  return {lse == -static_cast<C>(INFINITY) ? static_cast<C>(INFINITY) : lse, p.lse_low.data ? load(p.lse_low) : C(0)};
}

}  // namespace xformers::cuda
