#include "xformers/kernels/cuda/attention/decode/decode_choice.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/decode/decode_policy.h"
#include "xformers/kernels/cuda/attention/instance_choice.h"
#include "xformers/kernels/cuda/attention/split_merge.h"
#include "xformers/kernels/cuda/attention/tiles.h"

namespace xformers::cuda::decode {
namespace {

// Of packed sequences only the mean length is known here; long ones among short ones would read their keys once per
// tile of 16 rows.
constexpr int64_t kMostQueriesPerSequence = 4;

// Keys that a sequence probably has: lengths are known on the GPU alone.
int64_t likely_keys(const AttentionFwdParams& p) {
  if (p.seq.paged()) return p.seq.pages.max_pages * p.seq.pages.page_size;
  return p.seq.packed() ? p.shape.seqlen_k / std::max<int64_t>(p.seq.num_sequences, 1) : p.shape.seqlen_k;
}

// The parts that take the shortest. A multiprocessor gets no faster by more than a block (two, of two warps, at
// head_dim 256), so time goes by rounds of blocks that fill the GPU; parts have to be merged. Of the numbers of parts
// that take as many rounds, the largest is the fastest.
int64_t choose_splits(const AttentionFwdParams& p) {
  if (p.num_splits > 0) return std::min<int64_t>(p.num_splits, kMostSplits);
  constexpr int64_t kStep = 64, kMerge = 192, kMergeSplit = 8;  // in keys that a block reads meanwhile
  const int64_t tiles = std::max<int64_t>(row_tiles(p, kRows), 1), keys = likely_keys(p),
                fill =
                    current_device().multiprocessors * (std::max(p.shape.head_dim, p.shape.head_dim_v) > 128 ? 2 : 1);
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

}  // namespace

void why_not(const AttentionFwdParams& p, Reasons& reasons) {
  require_instance(
      built_decode(), p.shape, false, [](int head_dim) { return decode_policy(head_dim).smem_bytes(); }, reasons);
  const int64_t sequences = std::max<int64_t>(p.seq.packed() ? p.seq.num_sequences : 1, 1);
  if (const int64_t rows = p.shape.seqlen_q * packed_heads(p); rows > kRows * sequences) {
    reasons.add(rows / sequences, " rows (queries x heads of a group) share their keys, expected at most ", kRows);
  } else if (p.seq.packed() && p.shape.seqlen_q > kMostQueriesPerSequence * sequences) {
    reasons.add("packed sequences of more than ", kMostQueriesPerSequence, " queries in the mean");
  }
  if (p.mods.bias.data) reasons.add("bias");
  if (p.dropout.p > 0) reasons.add("dropout");
  if (p.quantization.format != KvFormat::kPlain) {
    reasons.add("quantised keys");
  } else if (!q_aligned(p) || !kv_aligned(p)) {
    reasons.add("rows of q, k or v are not in units of 16 bytes");
  }
}

size_t workspace(const AttentionFwdParams& p) { return partial_bytes(p, choose_splits(p)); }

void run(const AttentionFwdParams& p, const Stream& stream) {
  FwdArgs args = half_forward_args(p);
  args.tiles = max_tiles(p.shape.seqlen_q * args.packed_heads, p.seq, kRows);
  set_partial_results(args, choose_splits(p), stream);
  find_instance(built_decode(), p.shape)->launch(args, to_stream(stream));
  if (args.out_partial) merge_splits(args, true, to_stream(stream));
}

}  // namespace xformers::cuda::decode
