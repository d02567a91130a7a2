#include <algorithm>
#include <iterator>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/sm90/choice.h"
#include "xformers/kernels/cuda/attention/sm90/fwd_policy.h"
#include "xformers/kernels/cuda/attention/sm90/maps.h"
#include "xformers/kernels/cuda/attention/tile_count.h"
#include "xformers/kernels/cuda/attention/uncovered.h"

namespace xformers::cuda::sm90 {
namespace {

// The included files are written by CMake: the rows of fwd_instances.inc that were asked for.
const std::vector<ForwardInstance> kBuiltPlain = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_forward<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_fwd.inc"
#undef XFORMERS_INSTANCE
};
const std::vector<ForwardInstance> kBuiltScored = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_forward_scored<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_fwd_scored.inc"
#undef XFORMERS_INSTANCE
};

const std::vector<ForwardInstance> kBuiltBlocked = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_forward_blocked<type, head_dim, head_dim_v>},
#include "cuda_instances/sm90_fwd_blocked.inc"
#undef XFORMERS_INSTANCE
};

constexpr size_t kCountBytes = 16;      // of the tiles that are taken, in the workspace
constexpr int kSmemBytes = 227 * 1024;  // at most, of any policy
constexpr int64_t kFewestRows = 64;     // of a sequence

// Whether some of the blocks are no whole tiles and steps.
bool blocks_are_cut(const AttentionFwdParams& p, const FwdPolicy& policy) {
  return p.blocks.block_q % policy.block_m() != 0 || p.blocks.block_k % policy.block_n != 0;
}

// The first that fits; of two, the second for short rows under a band, and for blocks that are no whole tiles and steps
// of the first; whether there are such.
struct ChosenPolicy {
  int index;
  bool cut;
};
ChosenPolicy choose_policy(const ForwardInstance& instance, Features features, const AttentionFwdParams& p,
                           const FwdFacts& facts) {
  constexpr int64_t kShort = 1024;
  const auto fits = [&](const FwdPolicy& each) {
    return each.head_dim == instance.head_dim && each.head_dim_v == instance.head_dim_v &&
           each.scored == features.may(kAllScoreOps) && each.blocked == features.blocked();
  };
  const auto first = std::find_if(std::begin(kFwdPolicies), std::end(kFwdPolicies), fits), second = first + 1;
  const bool is_short = facts.banded && p.shape.seqlen_q / facts.sequences <= kShort;
  const bool cut = features.blocked() && blocks_are_cut(p, *first), other = features.blocked() ? cut : is_short;
  const auto chosen = other && second != std::end(kFwdPolicies) && fits(*second) ? second : first;
  return {static_cast<int>(chosen - std::begin(kFwdPolicies)), cut};
}

}  // namespace

std::optional<ForwardPlan> plan_forward(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                        Reasons& reasons) {
  if (facts.device.major != 9) {
    reasons.add("the GPU has compute capability ", facts.device.major, ".", facts.device.minor, ", expected 9.0");
  }
  const bool scored = features.may(kAllScoreOps);
  if (features.blocked() && !p.blocks.present()) features = Features::kPlain;
  const std::vector<ForwardInstance>& built = scored ? kBuiltScored : features.blocked() ? kBuiltBlocked : kBuiltPlain;
  if (built.empty()) reasons.add("this build has no code for 90a");
  const ForwardInstance* const instance = find_instance(
      built, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [](const ForwardInstance&) { return kSmemBytes; }, reasons);
  if (p.num_splits > 1) reasons.add("keys in parts");
  if (facts.out == RowAccess::kAny) reasons.add("rows of out are not in units of 16 bytes");
  if (!(has_tensor_map(rows_of_q(p)) && has_tensor_map(rows_of_k(p)) && has_tensor_map(rows_of_v(p)))) {
    reasons.add("rows of q, k or v are 0, or 2^40 bytes or more, apart");
  }
  if (scored && p.mods.bias.data) {
    if (p.seq.packed() && (p.seq.most_queries < 0 || p.seq.most_keys < 0)) {
      reasons.add("it is not known how many queries and keys the bias has");
    } else if (!has_tensor_map(rows_of_bias(p))) {
      reasons.add("rows of the bias are not apart by less than 2^40 bytes");
    }
  }
  if (p.seq.paged() && p.seq.pages.page_size % 8 != 0) {
    reasons.add("page_size is ", p.seq.pages.page_size, ", expected a multiple of 8");
  }
  if (p.seq.paged() && p.seq.cu_seqlens_k) reasons.add("keys that may begin inside of a page");
  if (reasons.any()) return {};
  ForwardPlan plan{.instance = instance, .features = features};
  const ChosenPolicy policy = choose_policy(*instance, features, p, facts);
  plan.policy = policy.index;
  // Where tiles are few, keys in parts fill the GPU; where rows are, those of many heads or sequences fill a tile.
  // Steps that are cut take longer than the other kernel's (docs/design/block-sparse.md).
  if (plan_splits(p, facts, instance->head_dim, Features::kPlain).splits > 1 ||
      p.shape.seqlen_q < kFewestRows * facts.sequences || policy.cut) {
    reasons.prefer_others();
  }
  if (reasons.any()) return {};
  if (p.seq.packed() || facts.banded || features.blocked()) plan.workspace = kCountBytes;  // tiles differ
  return plan;
}

void run_forward(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream) {
  FwdArgs args = forward_args(p, facts);
  args.packed_heads = Divisor<uint32_t>{1};
  args.policy = plan.policy;
  clear_uncovered_results(p, to_stream(stream));
  if (plan.workspace > 0) {
    args.next_tile = static_cast<int*>(stream.workspace);
    clear_count(args.next_tile, to_stream(stream));
  }
  plan.instance->launch(args, plan.features, to_stream(stream));
}

}  // namespace xformers::cuda::sm90
