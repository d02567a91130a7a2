#include "xformers/kernels/cuda/attention/sm80/bwd_plan.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {
namespace {

constexpr int64_t kMinBlocksPerSplit =
    4;  // of queries: below, reading keys and adding partial sums cost more than they gain
constexpr int64_t kMaxSplits = 16;

size_t padded(int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); }

}  // namespace

BwdPlan plan_backward(const AttentionBwdParams& p, int head_dim, Features features) {
  const sm80::BwdPolicy policy = sm80::bwd_policy(head_dim, features, sm80::kLargeSmem);
  const int64_t heads = p.shape.batch * p.shape.num_heads();
  const int64_t at_work = int64_t{current_device().multiprocessors} * policy.blocks_per_sm();
  BwdPlan plan;
  plan.tiles = max_tiles(p.shape.seqlen_k, p.seq, policy.block_n());
  plan.query_blocks = max_tiles(p.shape.seqlen_q, p.seq, policy.dq_rows());
  const int64_t blocks = std::max<int64_t>(heads * plan.tiles, 1);
  // Masks leave tiles unequal work: twice as many blocks even it out.
  const int64_t wanted = at_work * (p.band.window_left == kUnbounded && p.band.window_right == kUnbounded ? 1 : 2);
  plan.splits = static_cast<int>(
      std::clamp<int64_t>(std::min(wanted / blocks, plan.query_blocks / kMinBlocksPerSplit), 1, kMaxSplits));
  plan.heads_at_once = static_cast<int>(
      std::clamp<int64_t>(2 * at_work / std::max<int64_t>(plan.tiles, 1), 1, std::max<int64_t>(heads, 1)));
  plan.dq_bytes = padded(heads * plan.query_blocks * policy.dq_rows() * head_dim * 4);
  plan.turns_bytes = p.deterministic ? padded(heads * plan.query_blocks * 4) : 0;
  plan.done_bytes = padded(heads * 4);
  plan.partial_bytes = plan.splits > 1 ? padded(blocks * plan.splits * 2 * policy.block_n() * head_dim * 4) : 0;
  return plan;
}

void apply_plan(const BwdPlan& plan, void* memory, BwdArgs& args) {
  char* const begin = static_cast<char*>(memory);
  args.tiles = plan.tiles;
  args.query_blocks = plan.query_blocks;
  args.heads_at_once = plan.heads_at_once;
  args.splits = plan.splits;
  args.dq_sum = reinterpret_cast<float*>(begin);
  if (plan.turns_bytes > 0) args.turns = reinterpret_cast<int*>(begin + plan.dq_bytes);
  args.tiles_done = reinterpret_cast<int*>(begin + plan.dq_bytes + plan.turns_bytes);
  if (plan.splits > 1) args.partial = reinterpret_cast<float*>(begin + plan.zero_bytes());
}

}  // namespace xformers::cuda
