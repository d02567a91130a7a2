#include "xformers/kernels/cuda/attention/sm80/bwd_plan.h"

#include <algorithm>
#include <utility>

#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {
namespace {

constexpr int64_t kMinBlocksPerSplit =
    4;  // of queries: below, reading keys and adding partial sums cost more than they gain
constexpr int64_t kMaxSplits = 16;
constexpr int64_t kLongSteps = 16;  // of a part of a long tile

size_t padded(int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); }

}  // namespace

BwdPlan plan_backward(const AttentionBwdParams& p, int head_dim, Features features) {
  const sm80::BwdPolicy policy = sm80::bwd_policy(head_dim, features, true);
  const int64_t heads = p.shape.batch * p.shape.num_heads();
  const int64_t at_work = int64_t{current_device().multiprocessors} * policy.blocks_per_sm();
  const bool sees_all = p.band.window_left == kUnbounded && p.band.window_right == kUnbounded && !p.blocks.present();
  BwdPlan plan;
  plan.block_n = policy.block_n(), plan.dq_rows = policy.dq_rows(), plan.head_dim = head_dim;
  // Sequences that are shorter than a tile, one with the other. Draws of dropout go by 32 keys of a sequence, and turns
  // are counted within one; keys with gaps may lie in any order.
  plan.spans = p.seq.packed() && !p.seq.seqused_k && !p.deterministic && p.dropout.p == 0 && p.shape.seqlen_q > 0 &&
               p.shape.seqlen_k < p.seq.num_sequences * plan.block_n && sm80::may_span(policy) &&
               !p.mods.change_scores();  // by the place in a sequence
  const auto tiles_of = [&](int64_t rows, int tile_rows) {
    return plan.spans ? (rows + tile_rows - 1) / tile_rows : max_tiles(rows, p.seq, tile_rows);
  };
  plan.tiles = tiles_of(p.shape.seqlen_k, plan.block_n);
  plan.query_blocks = tiles_of(p.shape.seqlen_q, plan.dq_rows);
  const int64_t blocks = std::max<int64_t>(heads * plan.tiles, 1);
  // Masks leave tiles unequal work: twice as many blocks even it out.
  const int64_t wanted = at_work * (sees_all ? 1 : 2);
  // Under a block mask the long tiles alone are parted, on the GPU.
  const bool parts_long = features == Features::kBlocked && p.blocks.present();
  plan.splits = plan.spans || parts_long
                    ? 1
                    : static_cast<int>(std::clamp<int64_t>(
                          std::min(wanted / blocks, plan.query_blocks / kMinBlocksPerSplit), 1, kMaxSplits));
  plan.one_tile = !p.seq.packed() && sees_all && plan.tiles == 1 && plan.splits == 1;
  // What several tiles read stays in the L2 cache where few heads are at work; where hardly anything is read twice,
  // neighbouring heads, which are neighbours in memory, go together.
  plan.heads_at_once = static_cast<int>(
      plan.spans ? std::max<int64_t>(heads, 1)
                 : std::clamp<int64_t>(2 * at_work / std::max<int64_t>(plan.tiles, 1), 1, std::max<int64_t>(heads, 1)));
  plan.turns_bytes = p.deterministic ? padded(heads * plan.query_blocks * 4) : 0;
  plan.done_bytes = padded(heads * 4);
  plan.dq_bytes = plan.one_tile ? 0 : padded(heads * plan.query_blocks * plan.dq_rows * head_dim * 4);
  plan.long_steps = blocks < wanted ? kMinBlocksPerSplit : kLongSteps;
  plan.long_bytes = parts_long ? padded(kLongParts * int64_t{sizeof(LongPart) + 4} + 8) : 0;
  const int64_t parts = plan.splits > 1 ? blocks * plan.splits
                        : parts_long    ? std::min<int64_t>(kLongParts, blocks * kMaxSplits)
                                        : 0;
  plan.partial_bytes = padded(parts * 2 * plan.block_n * head_dim * 4);
  plan.span_bytes = plan.spans ? padded((p.shape.seqlen_k + plan.query_blocks) * 8) : 0;
  plan.slope_bytes = slope_part_bytes(p, plan.tiles * plan.splits);
  plan.extremes_bytes = padded(heads * ((p.shape.seqlen_q + kStatisticsRows - 1) / kStatisticsRows) *
                               static_cast<int64_t>(sizeof(RowExtremes)));
  return plan;
}

void apply_plan(const BwdPlan& plan, const AttentionBwdParams& p, void* memory, BwdArgs& args) {
  char* at = static_cast<char*>(memory);
  const auto take = [&](size_t bytes) { return std::exchange(at, at + bytes); };
  args.block_n = plan.block_n;
  args.dq_rows = plan.dq_rows;
  args.head_dim = plan.head_dim;
  args.tiles = plan.tiles;
  args.query_blocks = plan.query_blocks;
  args.heads_at_once = plan.heads_at_once;
  args.splits = plan.splits;
  args.one_tile = plan.one_tile;
  if (plan.turns_bytes > 0) args.turns = reinterpret_cast<int*>(take(plan.turns_bytes));
  args.tiles_done = reinterpret_cast<int*>(take(plan.done_bytes));
  if (char* const of_parts = static_cast<char*>(take(plan.long_bytes)); plan.long_bytes > 0) {
    args.long_tiles.parts = reinterpret_cast<LongPart*>(of_parts);
    args.long_tiles.done = reinterpret_cast<int*>(args.long_tiles.parts + kLongParts);
    args.long_tiles.counts = args.long_tiles.done + kLongParts;
    args.long_tiles.steps = static_cast<int>(plan.long_steps);
  }
  args.dq_sum = reinterpret_cast<float*>(take(plan.dq_bytes));
  if (plan.partial_bytes > 0) args.partial = reinterpret_cast<float*>(take(plan.partial_bytes));
  if (plan.spans) {
    args.block_tiles = reinterpret_cast<RangeOf<int>*>(take(static_cast<size_t>(plan.query_blocks) * 8));
    args.key_queries = reinterpret_cast<RangeOf<int>*>(take(static_cast<size_t>(p.shape.seqlen_k) * 8));
  }
  set_slope_parts(args, plan.tiles * plan.splits, take(plan.slope_bytes));
  args.extremes = reinterpret_cast<RowExtremes*>(take(plan.extremes_bytes));
}

}  // namespace xformers::cuda
