#include "xformers/kernels/cuda/attention/simt/choice.h"

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/uncovered.h"

namespace xformers::cuda::simt {

std::optional<ForwardPlan> plan_forward(const AttentionFwdParams&, const FwdFacts&, Features, Reasons&) {
  return ForwardPlan{};
}

void run_forward(const AttentionFwdParams& p, const FwdFacts&, const ForwardPlan&, const Stream& stream) {
  clear_uncovered_results(p, to_stream(stream));
  dispatch_dtype<bf16, fp16>(
      p.shape.dtype, [&](auto element) { launch_forward<decltype(element)>(forward_args(p), to_stream(stream)); });
}

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts&, Reasons&) {
  return BackwardPlan{.workspace = 2 * statistics_bytes(p)};
}

void run_backward(const AttentionBwdParams& p, const BwdFacts&, const BackwardPlan&, const Stream& stream) {
  const BwdArgs args = backward_args(p, stream);
  begin_backward(args, 1, stream);
  dispatch_dtype<bf16, fp16>(p.shape.dtype,
                             [&](auto element) { launch_backward<decltype(element)>(args, to_stream(stream)); });
}

}  // namespace xformers::cuda::simt
