#include <algorithm>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm90/choice.h"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/attention/tiles.h"

namespace xformers::cuda::sm90 {
namespace {

// The included files are written by CMake: the rows of bwd_instances.inc that were asked for.
const std::vector<BackwardInstance> kBuiltPlain = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_backward<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_bwd.inc"
#undef XFORMERS_INSTANCE
};
const std::vector<BackwardInstance> kBuiltScored = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_backward_scored<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_bwd_scored.inc"
#undef XFORMERS_INSTANCE
};

constexpr int kSmemBytes = 227 * 1024;  // at most, of any policy
constexpr size_t kCountBytes =
    256;  // of the tiles that are taken, by either kernel, before the rest of the workspace's zeros

size_t padded(int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); }

BwdPlan cut(const AttentionBwdParams& p, const BwdPolicy& policy) {
  const int64_t heads = p.shape.batch * p.shape.num_heads(), at_work = current_device().multiprocessors;
  BwdPlan plan{};
  plan.block_n = policy.kBlockN, plan.dq_rows = policy.block_m, plan.head_dim = policy.dq_dims();
  plan.tiles = max_tiles(p.shape.seqlen_k, p.seq, plan.block_n);
  plan.query_blocks = max_tiles(p.shape.seqlen_q, p.seq, plan.dq_rows);
  plan.splits = 1;
  plan.heads_at_once = static_cast<int>(
      std::clamp<int64_t>(2 * at_work / std::max<int64_t>(plan.tiles, 1), 1, std::max<int64_t>(heads, 1)));
  plan.turns_bytes = p.deterministic ? padded(heads * plan.query_blocks * 4) : 0;
  plan.done_bytes = padded(heads * 4);
  plan.dq_bytes = padded(heads * plan.query_blocks * plan.dq_rows * policy.dq_dims() * 4);
  plan.slope_bytes = slope_part_bytes(p, plan.tiles);
  plan.extremes_bytes = padded(heads * ((p.shape.seqlen_q + kStatisticsRows - 1) / kStatisticsRows) *
                               static_cast<int64_t>(sizeof(RowExtremes)));
  return plan;
}

void add_reasons_of_bias(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  if (facts.bias == RowAccess::kAny) reasons.add("rows of the bias are not in units of 16 bytes");
  if (!facts.dbias_pairs) reasons.add("rows of the gradient of the bias are not in units of two elements");
  if (p.dbias_shared && p.deterministic) reasons.add("the gradient of a shared bias in a fixed order");
  if (p.seq.packed() && (p.seq.most_queries < 0 || p.seq.most_keys < 0)) {
    reasons.add("it is not known how many queries and keys the bias has");
  } else if (!has_tensor_map(rows_of_bias(p))) {
    reasons.add("rows of the bias are not apart by less than 2^40 bytes");
  }
}

// What the kernel without, or with, changes to scores has against the call.
std::optional<BackwardPlan> plan(const AttentionBwdParams& p, const BwdFacts& facts, Features features,
                                 Reasons& reasons) {
  if (facts.device.major != 9) {
    reasons.add("the GPU has compute capability ", facts.device.major, ".", facts.device.minor, ", expected 9.0");
  }
  const bool scored = features.score_ops != 0;
  const std::vector<BackwardInstance>& built = scored ? kBuiltScored : kBuiltPlain;
  if (built.empty()) reasons.add("this build has no code for 90a");
  const BackwardInstance* const instance = find_instance(
      built, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [](const BackwardInstance&) { return kSmemBytes; }, reasons);
  const int ops = facts.score_ops & ~features.score_ops;
  if (ops & (kBiasOp | kDropoutOp)) reasons.add("bias or dropout");
  if (facts.keys & kBlockedKeys) reasons.add("a block mask");
  if (ops & kSoftcapOp) reasons.add("softcap");
  if (ops & kAlibiOp) reasons.add("alibi_slopes");
  if (access_of(facts.q, facts.kv, facts.dout) == RowAccess::kAny) {
    reasons.add("rows of q, k, v or dout are not in units of 16 bytes");
  }
  if (!(has_tensor_map(rows_of_q(p)) && has_tensor_map(rows_of_k(p)) && has_tensor_map(rows_of_v(p)) &&
        has_tensor_map(rows_of_dout(p)))) {
    reasons.add("rows of q, k, v or dout are 0, or 2^40 bytes or more, apart");
  }
  if (scored && p.mods.bias.data) add_reasons_of_bias(p, facts, reasons);
  if (reasons.any()) return {};
  BackwardPlan plan{.instance = instance, .features = features};
  plan.blocks = cut(p, kBwdPolicies[bwd_policy_of(instance->head_dim, instance->head_dim_v, scored, true)]);
  // Few tiles leave multiprocessors idle, and short ones are mostly empty.
  if (p.shape.batch * p.shape.num_heads() * plan.blocks.tiles < facts.device.multiprocessors ||
      p.shape.seqlen_k < plan.blocks.block_n * facts.sequences) {
    reasons.prefer_others();
  }
  if (reasons.any()) return {};
  plan.workspace = 2 * statistics_bytes(p) + kCountBytes + plan.blocks.bytes();
  return plan;
}

}  // namespace

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  return plan(p, facts, Features::kPlain, reasons);
}
std::optional<BackwardPlan> plan_backward_scored(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  return plan(p, facts, {.score_ops = kBiasOp | kDropoutOp | kAlibiOp}, reasons);
}

void run_backward(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream) {
  BwdArgs args = backward_args(p, stream);
  set_drop_factors(args);
  args.aligned = true;
  args.aligned_dq = facts.dq == RowAccess::kChunks;
  args.aligned_dkv = facts.dkv == RowAccess::kChunks;
  args.aligned_dbias = facts.dbias == RowAccess::kChunks;
  char* const memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  if (p.seq.packed() || facts.banded) args.next_tile = reinterpret_cast<int*>(memory);  // tiles differ
  apply_plan(plan.blocks, p, memory + kCountBytes, args);
  begin_backward(args, kLog2eDouble, stream, memory, kCountBytes + plan.blocks.zero_bytes());
  plan.instance->launch(args, plan.features, to_stream(stream));
  sum_slope_parts(args, to_stream(stream));
}

}  // namespace xformers::cuda::sm90
