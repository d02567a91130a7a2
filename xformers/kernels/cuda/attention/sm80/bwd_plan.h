// How a backward on tensor cores is cut into blocks, and what memory that takes. Plain C++.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/features.h"

namespace xformers::cuda {

struct BwdPlan {
  int block_n, dq_rows, head_dim;  // of the instance
  bool spans;                      // tiles of keys span sequences
  bool one_tile;                   // see BwdArgs, as for the rest
  int64_t tiles, query_blocks;     // per head
  int heads_at_once, splits;
  int64_t long_steps;  // of LongTiles
  // In memory in this order.
  size_t turns_bytes, done_bytes, long_bytes, dq_bytes, partial_bytes, span_bytes, slope_bytes, extremes_bytes;

  // These begin as zeros; where tiles span sequences, dq_sum in parts.
  size_t zero_bytes() const { return turns_bytes + done_bytes + long_bytes + (spans ? 0 : dq_bytes); }
  size_t bytes() const {
    return turns_bytes + done_bytes + long_bytes + dq_bytes + partial_bytes + span_bytes + slope_bytes + extremes_bytes;
  }
};

// `head_dim`: of the instance.
BwdPlan plan_backward(const AttentionBwdParams& p, int head_dim, Features features);

// Lets `args` use `memory`, of plan.bytes().
void apply_plan(const BwdPlan& plan, const AttentionBwdParams& p, void* memory, BwdArgs& args);

}  // namespace xformers::cuda
