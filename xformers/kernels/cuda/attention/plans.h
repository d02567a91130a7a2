// What a kernel that takes a call has settled about it: the choice carries it to the run, so that reasons, workspace
// and run agree. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>

#include "xformers/kernels/cuda/attention/features.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_plan.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_plan.h"

namespace xformers::cuda {

struct ForwardInstance;
struct BackwardInstance;

struct ForwardPlan {
  size_t workspace = 0;  // bytes
  const ForwardInstance* instance = nullptr;
  Features features = {};  // of the instance
  SplitPlan split = {};
  int policy = 0;  // of sm90: its tile sizes
};

struct BackwardPlan {
  size_t workspace = 0;
  const BackwardInstance* instance = nullptr;
  Features features = {};
  BwdPlan blocks = {};       // of sm80
  int64_t query_blocks = 0;  // of sm80_fp32: blocks of queries per (batch row, head), at most
};

}  // namespace xformers::cuda
