// Merges partial attention over disjoint keys: out = sum_s w_s out_s with w_s = exp(lse_s - lse), lse = ln sum_s
// exp(lse_s).
#pragma once

#include "xformers/kernels/cpu/attention/plan.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

// partial_out [rows, head_dim_v], partial_lse [rows] in the compute type; writes out and lse of the merge's rows.
void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const float* partial_out,
                  const float* partial_lse);
void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const double* partial_out,
                  const double* partial_lse);

}  // namespace xformers::cpu
