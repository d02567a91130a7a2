// What a sink makes of a row behind its last key: it is one more key that every query sees, with this score and no
// value, so it takes weight from the others and adds to the log-sum-exp. In float, or double for fp64 inputs.
#pragma once

#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"

namespace xformers::cuda {

template <class C>
struct RowEnd {
  RowLse<C> lse;
  C kept;  // what the row's results are multiplied by
};

// `sum`: of the keys; -inf where the row sees none. The rule of merge/shares.h.
template <class C>
__device__ __forceinline__ RowEnd<C> add_sink(const RowLse<C>& sum, C sink) {
  constexpr C kNone = -static_cast<C>(INFINITY);
  if (sink == kNone) return {sum, 1};
  const bool higher = sink > sum.lse;
  const C smaller = exp(higher ? (sum.lse - sink) + sum.low : (sink - sum.lse) - sum.low);
  const C more = log1p(smaller), top = higher ? sink : sum.lse, rest = higher ? more : sum.low + more;
  const C lse = top + rest;
  return {{lse, isfinite(lse) ? (top - lse) + rest : C(0)}, (higher ? smaller : C(1)) / (1 + smaller)};
}

// What is left of a row whose scores have the maximum row_max and the sum row_sum relative to it.
template <class C>
__device__ __forceinline__ RowEnd<C> end_row(const AttentionFwdParams& p, int64_t sequence, int64_t group, int64_t head,
                                             C row_max, C row_sum) {
  const RowLse<C> lse = row_lse(row_max, row_sum);
  if (!p.mods.sinks.data) return {lse, 1};
  return add_sink(lse, number_at<C>(p.mods.sinks, sequence, group, head));
}

}  // namespace xformers::cuda
