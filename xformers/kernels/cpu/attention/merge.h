// Merges partial attention over disjoint keys, by the rule of merge/shares.h.
#pragma once

#include "xformers/kernels/cpu/attention/plan.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

// Partial results of tasks that see only some of the keys, in the compute type: normalised rows, their largest scores
// (to be multiplied by `factor`) and sums, 0 where a task has seen no key. From a log-sum-exp alone the sum could not
// be told where scores are large.
template <class C>
struct ForwardPartials {
  C* out = nullptr;      // [rows, head_dim_v]
  C* row_max = nullptr;  // [rows]
  C* row_sum = nullptr;  // [rows]
  C factor = 1;
};

// Writes out, lse and lse_low of the merge's rows.
void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const ForwardPartials<float>& partials);
void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const ForwardPartials<double>& partials);

}  // namespace xformers::cpu
