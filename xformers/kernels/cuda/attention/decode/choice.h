// When the decode kernel runs, and in how many parts it reads the keys. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/kernels.h"

namespace xformers::cuda::decode {

std::optional<ForwardPlan> plan(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                Reasons& reasons);
void run(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream);

}  // namespace xformers::cuda::decode
