// The lists of kernels, best first; the last ones take everything.
#pragma once

#include <optional>
#include <span>

#include "xformers/kernels/base/kernel_list.h"
#include "xformers/kernels/cuda/attention/facts.h"
#include "xformers/kernels/cuda/attention/plans.h"
#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

// `features` is all that a kernel takes. plan() adds what else it has against the call to the reasons, and gives no
// plan then; run() enqueues it, with plan.workspace bytes at the stream's disposal.
struct ForwardKernel {
  const char* name;
  Features features;
  std::optional<ForwardPlan> (*plan)(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                     Reasons& reasons);
  void (*run)(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream);
};

struct BackwardKernel {
  const char* name;
  std::optional<BackwardPlan> (*plan)(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons);
  void (*run)(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream);
};

std::span<const ForwardKernel> forward_list();
std::span<const BackwardKernel> backward_list();

}  // namespace xformers::cuda
