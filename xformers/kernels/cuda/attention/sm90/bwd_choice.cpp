#include <algorithm>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm90/choice.h"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/attention/tiles.h"

namespace xformers::cuda::sm90 {
namespace {

// The included file is written by CMake: the rows of bwd_instances.inc that were asked for.
const std::vector<BackwardInstance> kBuilt = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_backward<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_bwd.inc"
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
  plan.extremes_bytes = padded(heads * ((p.shape.seqlen_q + kStatisticsRows - 1) / kStatisticsRows) *
                               static_cast<int64_t>(sizeof(RowExtremes)));
  return plan;
}

}  // namespace

std::optional<BackwardPlan> plan_backward(const AttentionBwdParams& p, const BwdFacts& facts, Reasons& reasons) {
  if (facts.device.major != 9) {
    reasons.add("the GPU has compute capability ", facts.device.major, ".", facts.device.minor, ", expected 9.0");
  }
  if (kBuilt.empty()) reasons.add("this build has no code for 90a");
  const BackwardInstance* const instance = find_instance(
      kBuilt, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [](const BackwardInstance&) { return kSmemBytes; }, reasons);
  if (facts.score_ops & (kBiasOp | kDropoutOp)) reasons.add("bias or dropout");
  if (facts.keys & kBlockedKeys) reasons.add("a block mask");
  if (facts.score_ops & kSoftcapOp) reasons.add("softcap");
  if (facts.score_ops & kAlibiOp) reasons.add("alibi_slopes");
  // Tiles that differ are taken as blocks come free, ahead of their time: those that others wait for may come late.
  if (p.deterministic && (p.seq.packed() || facts.banded)) {
    reasons.add("deterministic sums under a mask or of packed sequences");
  }
  if (access_of(facts.q, facts.kv, facts.dout) == RowAccess::kAny) {
    reasons.add("rows of q, k, v or dout are not in units of 16 bytes");
  }
  if (!(has_tensor_map(rows_of_q(p)) && has_tensor_map(rows_of_k(p)) && has_tensor_map(rows_of_v(p)) &&
        has_tensor_map(rows_of_dout(p)))) {
    reasons.add("rows of q, k, v or dout are 0, or 2^40 bytes or more, apart");
  }
  if (reasons.any()) return {};
  BackwardPlan plan{.instance = instance, .features = Features::kPlain};
  plan.blocks = cut(p, kBwdPolicies[bwd_policy_of(instance->head_dim, instance->head_dim_v, true)]);
  // Few tiles leave multiprocessors idle, and short ones are mostly empty.
  if (p.shape.batch * p.shape.num_heads() * plan.blocks.tiles < facts.device.multiprocessors ||
      p.shape.seqlen_k < plan.blocks.block_n * facts.sequences) {
    reasons.prefer_others();
  }
  if (reasons.any()) return {};
  plan.workspace = 2 * statistics_bytes(p) + kCountBytes + plan.blocks.bytes();
  return plan;
}

void run_backward(const AttentionBwdParams& p, const BwdFacts& facts, const BackwardPlan& plan, const Stream& stream) {
  BwdArgs args = backward_args(p, stream);
  args.aligned = true;
  args.aligned_dq = facts.dq == RowAccess::kChunks;
  args.aligned_dkv = facts.dkv == RowAccess::kChunks;
  char* const memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  if (p.seq.packed() || facts.banded) args.next_tile = reinterpret_cast<int*>(memory);  // tiles differ
  apply_plan(plan.blocks, p, memory + kCountBytes, args);
  begin_backward(args, kLog2eDouble, stream, memory, kCountBytes + plan.blocks.zero_bytes());
  plan.instance->launch(args, plan.features, to_stream(stream));
}

}  // namespace xformers::cuda::sm90
