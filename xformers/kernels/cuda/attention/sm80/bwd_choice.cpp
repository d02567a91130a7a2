#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80/choice.h"

namespace xformers::cuda::sm80 {
namespace {

// The included file is written by CMake: the rows of instances.inc that were asked for.
const std::vector<BackwardInstance> kBuilt = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_backward<type, head_dim>},
#include "cuda_instances/sm80_bwd.inc"
#undef XFORMERS_INSTANCE
};

RowAccess inputs_of(const BwdFacts& facts) { return access_of(facts.q, facts.kv, facts.dout); }

Features features_of(const BwdFacts& facts) {
  if (access_of(inputs_of(facts), facts.bias) == RowAccess::kAny || !facts.dbias_pairs) return Features::kGeneral;
  const int ops = facts.score_ops & ~kSignedScaleOp, keys = facts.keys & kBlockedKeys;
  for (const Features features : {Features::kPlain, Features::kBlocked, Features::kScored, Features::kModified}) {
    if ((ops & ~features.score_ops) == 0 && (keys & ~features.keys) == 0) return features;
  }
  return Features::kGeneral;
}

}  // namespace

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  const BackwardInstance* const instance = find_instance(
      kBuilt, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [](const BackwardInstance& each) { return bwd_policy(each.head_dim, Features::kGeneral, false).smem_bytes(); },
      reasons);
  if (p.dbias_shared && p.deterministic) reasons.add("the gradient of a shared bias in a fixed order");
  if (p.blocks.present() && p.deterministic) reasons.add("sums over a block mask in a fixed order");
  if (reasons.any()) return {};
  BackwardPlan plan{.instance = instance, .features = features_of(facts)};
  plan.blocks = cuda::plan_backward(p, instance->head_dim, plan.features);
  plan.workspace = 2 * statistics_bytes(p) + plan.blocks.bytes();
  return plan;
}

void run_backward(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream) {
  BwdArgs args = backward_args(p, stream);
  set_drop_factors(args);
  args.aligned = inputs_of(facts) == RowAccess::kChunks;
  args.aligned_dq = facts.dq == RowAccess::kChunks;
  args.aligned_dkv = facts.dkv == RowAccess::kChunks;
  args.aligned_dbias = facts.dbias == RowAccess::kChunks;
  char* const memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  apply_plan(plan.blocks, p, memory, args);
  begin_backward(args, kLog2eDouble, stream, memory, plan.blocks.zero_bytes());
  if (plan.blocks.spans) args.p.seq = {};  // from here on all sequences are as one
  plan.instance->launch(args, plan.features, to_stream(stream));
  sum_slope_parts(args, to_stream(stream));
}

}  // namespace xformers::cuda::sm80
