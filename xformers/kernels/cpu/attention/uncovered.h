// Rows that belong to no sequence of a packed layout: no kernel visits them, and they are written here.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

// out 0, lse -inf.
void clear_uncovered(const AttentionFwdParams& params);
// dq, dk, dv 0; and all of dbias, of which kernels write only what is visible.
void clear_uncovered(const AttentionBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
