#include "xformers/kernels/cuda/attention/decode/choice.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/decode/decode_policy.h"
#include "xformers/kernels/cuda/attention/instances.h"
#include "xformers/kernels/cuda/attention/split_merge.h"
#include "xformers/kernels/cuda/attention/tiles.h"

namespace xformers::cuda::decode {
namespace {

// The included file is written by CMake: the rows of instances.inc that were asked for.
const std::vector<ForwardInstance> kBuilt = {
#define XFORMERS_INSTANCE(type, head_dim, head_dim_v) \
  {kDTypeOf<type>, head_dim, head_dim_v, launch_decode<type, head_dim>},
#include "cuda_instances/decode.inc"
#undef XFORMERS_INSTANCE
};

// Of packed sequences only the mean length is known here; long ones among short ones would read their keys once per
// tile of 16 rows.
constexpr int64_t kMostQueriesPerSequence = 4;

// Keys that a sequence probably has: lengths are known on the GPU alone.
int64_t likely_keys(const AttentionFwdParams& p, const FwdFacts& facts) {
  return p.seq.paged() ? p.seq.pages.max_pages * p.seq.pages.page_size : p.shape.seqlen_k / facts.sequences;
}

// The parts that take the shortest. A multiprocessor gets no faster by more than a block (two, of two warps, at
// head_dim 256), so time goes by rounds of blocks that fill the GPU; parts have to be merged. Of the numbers of parts
// that take as many rounds, the largest is the fastest.
int64_t choose_splits(const AttentionFwdParams& p, const FwdFacts& facts) {
  if (p.num_splits > 0) return std::min<int64_t>(p.num_splits, kMostSplits);
  constexpr int64_t kStep = 64, kMerge = 192, kMergeSplit = 8;  // in keys that a block reads meanwhile
  const int64_t tiles = std::max<int64_t>(row_tiles(p, facts, kRows), 1), keys = likely_keys(p, facts),
                fill = facts.device.multiprocessors * (std::max(p.shape.head_dim, p.shape.head_dim_v) > 128 ? 2 : 1);
  const int64_t fewest = (tiles + fill - 1) / fill, most = std::clamp<int64_t>(keys / kStep, 1, kMostSplits);
  int64_t best = 1, best_cost = fewest * keys;
  for (int64_t rounds = fewest; rounds < fewest + 4; ++rounds) {
    const int64_t splits = std::min(rounds * fill / tiles, most);
    if (splits <= best) continue;
    const int64_t per_block = (keys + splits * kStep - 1) / (splits * kStep) * kStep;
    const int64_t cost = rounds * per_block + kMerge + kMergeSplit * splits;
    if (cost < best_cost) best = splits, best_cost = cost;
  }
  if (!p.seq.seqused_k) return best;
  // Lengths differ: many short parts, so that the long sequences do not end alone.
  constexpr int64_t kRounds = 12, kKeys = 1024;
  const int64_t even = std::min((kRounds * fill + tiles - 1) / tiles, keys / kKeys);
  return std::clamp<int64_t>(even, best, kMostSplits);
}

// Two parts of a tile that run as one cluster merge by themselves. (More of them find no room beside each other, and
// wait for it: docs/design/cuda-decoding.md.)
bool parts_meet(const AttentionFwdParams& p, const FwdFacts& facts, int64_t splits) {
  return splits == 2 && std::max(p.shape.head_dim, p.shape.head_dim_v) <= 128 && facts.device.has_clusters;
}

}  // namespace

std::optional<ForwardPlan> plan(const AttentionFwdParams& p, const FwdFacts& facts, Features features,
                                Reasons& reasons) {
  const ForwardInstance* const instance = find_instance(
      kBuilt, p.shape, {DType::kBFloat16, DType::kFloat16}, facts.device.smem_per_block,
      [](const ForwardInstance& each) { return decode_smem_bytes(each.head_dim); }, reasons);
  if (const int64_t rows = p.shape.seqlen_q * facts.packed_heads; rows > kRows * facts.sequences) {
    reasons.add(rows / facts.sequences, " rows (queries x heads of a group) share their keys, expected at most ",
                kRows);
  } else if (p.seq.packed() && p.shape.seqlen_q > kMostQueriesPerSequence * facts.sequences) {
    reasons.add("packed sequences of more than ", kMostQueriesPerSequence, " queries in the mean");
  }
  if (reasons.any()) return {};
  ForwardPlan plan{.instance = instance, .features = features};
  plan.split.splits = choose_splits(p, facts);
  if (!parts_meet(p, facts, plan.split.splits)) plan.workspace = partial_bytes(p, facts.total_rows, plan.split.splits);
  return plan;
}

void run(const AttentionFwdParams& p, const FwdFacts& facts, const ForwardPlan& plan, const Stream& stream) {
  FwdArgs args = forward_args(p, facts);
  args.tiles = max_tiles(p.shape.seqlen_q * args.packed_heads.size(), p.seq, kRows);
  args.parts_meet = parts_meet(p, facts, plan.split.splits);
  args.num_splits = static_cast<int>(plan.split.splits);
  if (!args.parts_meet) set_partial_results(args, facts.total_rows, plan.split.splits, stream);
  plan.instance->launch(args, plan.features, to_stream(stream));
  if (args.out_partial) merge_splits(args, true, to_stream(stream));
}

}  // namespace xformers::cuda::decode
