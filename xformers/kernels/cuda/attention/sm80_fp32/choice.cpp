#include "xformers/kernels/cuda/attention/sm80_fp32/choice.h"

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/attention/uncovered.h"
#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda::sm80_fp32 {
namespace {

// The included files are written by CMake: the rows of instances.inc that were asked for.
const std::vector<ForwardInstance> kBuiltForward = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) {kDTypeOf<type>, head_dim, head_dim_v, launch_forward<head_dim>},
#include "cuda_instances/sm80_fp32_fwd.inc"
#undef XFORMERS_INSTANCE
};
const std::vector<BackwardInstance> kBuiltBackward = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) {kDTypeOf<type>, head_dim, head_dim_v, launch_backward<head_dim>},
#include "cuda_instances/sm80_fp32_bwd.inc"
#undef XFORMERS_INSTANCE
};

// Instances are built for no score operations, and for all and block masks.
Features features_of(int score_ops, int keys) {
  return {.rows = RowAccess::kAny, .score_ops = score_ops == 0 && keys == 0 ? 0 : kAllScoreOps};
}

int64_t key_tiles(const AttentionBwdParams& p, const BackwardInstance& instance) {
  return max_tiles(p.shape.seqlen_k, p.seq, bwd_policy(instance.head_dim, true).block_n());
}

size_t turns_bytes(const AttentionBwdParams& p, int64_t blocks) {
  return p.deterministic ? static_cast<size_t>(blocks * p.shape.batch * p.shape.num_heads()) * sizeof(int) : 0;
}

}  // namespace

std::optional<ForwardPlan> plan_forward(const AttentionFwdParams& p, const FwdFacts& facts, Features,
                                        Reasons& reasons) {
  const ForwardInstance* const instance = find_instance(
      kBuiltForward, p.shape, {DType::kFloat32}, facts.device.smem_per_block,
      [](const ForwardInstance& each) { return fwd_policy(each.head_dim, true).smem_bytes(); }, reasons);
  if (reasons.any()) return {};
  return ForwardPlan{.instance = instance, .features = features_of(facts.score_ops, facts.keys)};
}

void run_forward(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream) {
  FwdArgs args = forward_args(p, facts);
  args.aligned_out = args.chunked_out;
  clear_uncovered_results(p, to_stream(stream));
  plan.instance->launch(args, plan.features, to_stream(stream));
}

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  const BackwardInstance* const instance = find_instance(
      kBuiltBackward, p.shape, {DType::kFloat32}, facts.device.smem_per_block,
      [](const BackwardInstance& each) { return bwd_policy(each.head_dim, true).smem_bytes(); }, reasons);
  if (p.dbias_shared && p.deterministic) reasons.add("the gradient of a shared bias in a fixed order");
  if (p.blocks.present() && p.deterministic) reasons.add("sums over a block mask in a fixed order");
  if (reasons.any()) return {};
  BackwardPlan plan{.instance = instance, .features = features_of(facts.score_ops & ~kSignedScaleOp, facts.keys)};
  plan.query_blocks = max_tiles(p.shape.seqlen_q, p.seq, bwd_policy(instance->head_dim, true).block_m);
  plan.workspace =
      2 * statistics_bytes(p) + slope_part_bytes(p, key_tiles(p, *instance)) + turns_bytes(p, plan.query_blocks);
  return plan;
}

void run_backward(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream) {
  BwdArgs args = backward_args(p, stream);
  args.query_blocks = plan.query_blocks;
  args.aligned = access_of(facts.q, facts.kv, facts.dout, facts.dq, facts.dkv) == RowAccess::kChunks;
  char* memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  const int64_t slope_parts = key_tiles(p, *plan.instance);
  set_slope_parts(args, slope_parts, memory);
  memory += slope_part_bytes(p, slope_parts);
  if (const size_t bytes = turns_bytes(p, args.query_blocks); bytes > 0) {
    args.turns = reinterpret_cast<int*>(memory);
    XFORMERS_CUDA_CHECK(cudaMemsetAsync(args.turns, 0, bytes, to_stream(stream)));
  }
  begin_backward(args, kLog2eDouble, stream);
  plan.instance->launch(args, plan.features, to_stream(stream));
  sum_slope_parts(args, to_stream(stream));
}

}  // namespace xformers::cuda::sm80_fp32
