#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/choice.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/split_merge.h"
#include "xformers/kernels/cuda/attention/uncovered.h"

namespace xformers::cuda::sm80 {
namespace {

// The included file is written by CMake: the rows of instances.inc that were asked for.
const std::vector<ForwardInstance> kBuilt = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_forward<type, head_dim>},
#include "cuda_instances/sm80_fwd.inc"
#undef XFORMERS_INSTANCE
};

}  // namespace

std::optional<ForwardPlan> plan_forward(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                        Reasons& reasons) {
  const ForwardInstance* const instance = find_instance(
      kBuilt, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [&](const ForwardInstance& each) { return fwd_policy(each.head_dim, features).smem_bytes(); }, reasons);
  if (reasons.any()) return {};
  if (features == Features::kBlocked && !p.blocks.present()) features = Features::kPlain;
  ForwardPlan plan{.instance = instance, .features = features};
  if (has_short_sequences(p, facts, instance->head_dim, features)) {
    plan.features = Features::kShort;
  } else {
    plan.split = plan_splits(p, facts, instance->head_dim, features);
  }
  plan.workspace = partial_bytes(p, facts.total_rows, plan.split.splits);
  return plan;
}

void run_forward(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream) {
  FwdArgs args = forward_args(p, facts);
  set_partial_results(args, facts.total_rows, plan.split.splits, stream);
  args.part_steps = plan.split.part_steps;
  if (args.out_partial) {
    if (p.seq.packed()) clear_partial_stats(args, to_stream(stream));  // the merge writes what no sequence covers
  } else if (plan.features != Features::kShort) {                      // which writes every row
    clear_uncovered_results(p, to_stream(stream));
  }
  plan.instance->launch(args, plan.features, to_stream(stream));
  if (args.out_partial) merge_splits(args, false, to_stream(stream));
}

}  // namespace xformers::cuda::sm80
