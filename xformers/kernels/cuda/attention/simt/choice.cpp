#include "xformers/kernels/cuda/attention/simt/choice.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/simt/policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
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
  BackwardPlan plan;
  plan.query_blocks = max_tiles(p.shape.seqlen_q, p.seq, backward_tile(std::max(p.shape.head_dim, p.shape.head_dim_v)));
  plan.workspace = 2 * statistics_bytes(p) + slope_part_bytes(p, plan.query_blocks);
  return plan;
}

void run_backward(const AttentionBwdParams& p, const BwdFacts&, const BackwardPlan& plan, const Stream& stream) {
  BwdArgs args = backward_args(p, stream);
  set_slope_parts(args, plan.query_blocks, static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p));
  begin_backward(args, 1, stream);
  dispatch_dtype<bf16, fp16>(p.shape.dtype,
                             [&](auto element) { launch_backward<decltype(element)>(args, to_stream(stream)); });
  sum_slope_parts(args, to_stream(stream));
}

}  // namespace xformers::cuda::simt
