// When Hopper's kernels run, and with what arguments. Plain C++.
#pragma once

#include "xformers/kernels/cuda/attention/kernels.h"

namespace xformers::cuda::sm90 {

std::optional<ForwardPlan> plan_forward(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                        Reasons& reasons);
void run_forward(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream);

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons);
std::optional<BackwardPlan> plan_backward_scored(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons);
void run_backward(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream);

}  // namespace xformers::cuda::sm90
