// How a backward on tensor cores is cut into blocks, and what memory that takes. Plain C++.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda {

struct BwdPlan {
  int64_t tiles, query_blocks;  // per head; see BwdArgs
  int heads_at_once, splits;
  size_t dq_bytes, turns_bytes, done_bytes;  // these begin as zeros
  size_t partial_bytes;

  size_t zero_bytes() const { return dq_bytes + turns_bytes + done_bytes; }
  size_t bytes() const { return zero_bytes() + partial_bytes; }
};

// `head_dim`: of the instance.
BwdPlan plan_backward(const AttentionBwdParams& p, int head_dim, Features features);

// Lets `args` use `memory`, of plan.bytes().
void apply_plan(const BwdPlan& plan, void* memory, BwdArgs& args);

}  // namespace xformers::cuda
