#include "xformers/kernels/cuda/attention/sm80/fwd_plan.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/params/band.h"

namespace xformers::cuda {
namespace {

// Times in steps of a block among as many as the GPU holds (3.3 us on an H200, at any head_dim), measured there.
constexpr double kStart = 1;          // of a block: Q and the first K arrive, results leave
constexpr double kMerge = 1.5;        // the second launch
constexpr double kMergePart = 0.011;  // of a tile's fp32 results at head_dim 128 or below, written and read again
constexpr double kAlone = 0.66;       // a step where one block has a multiprocessor to itself
constexpr int64_t kRounds = 3;        // with more rounds of blocks than this, splitting is not considered
constexpr int64_t kFewestSteps = 2;   // of a part

constexpr int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The steps that the row tiles of a head take, by up to kSamples of them.
struct TileSteps {
  static constexpr int kSamples = 16;
  int steps[kSamples];
  int samples = 0, most = 1, sum = 0;

  int parts(int part_steps) const {  // of all samples; an empty tile is a part too
    int parts = 0;
    for (int i = 0; i < samples; ++i) parts += std::max((steps[i] + part_steps - 1) / part_steps, 1);
    return parts;
  }
};

// Sequences of packed layouts are taken for equally long: lengths are known on the GPU alone.
TileSteps tile_steps(const AttentionFwdParams& p, const FwdFacts& facts, const sm80::FwdPolicy& policy) {
  const int64_t queries = p.shape.seqlen_q / facts.sequences;
  const int64_t keys =
      p.seq.paged() ? p.seq.pages.max_pages * p.seq.pages.page_size : p.shape.seqlen_k / facts.sequences;
  const int64_t rows = ceil_of(policy.block_m(), facts.packed_heads);  // queries of a tile
  const int64_t tiles = std::max<int64_t>(ceil_of(queries, rows), 1);
  const BandOf<int64_t> band(p.band, {0, 0, 0, 0, queries, keys});
  TileSteps result;
  result.samples = facts.banded ? static_cast<int>(std::min<int64_t>(tiles, TileSteps::kSamples)) : 1;
  for (int i = 0; i < result.samples; ++i) {
    const int64_t first = (tiles - 1 - tiles * i / result.samples) * rows;
    const RangeOf<int64_t> seen = band.key_range({first, std::min(first + rows, queries)});
    const int64_t low = seen.begin / policy.block_n, high = ceil_of(seen.end, policy.block_n);
    result.steps[i] = static_cast<int>(std::max<int64_t>(high - low, 0));
    result.sum += result.steps[i];
    result.most = std::max(result.most, result.steps[i]);
  }
  return result;
}

// How long `parts` blocks take together, the longest of them `longest` steps, all of them `steps`.
double time_of_blocks(int multiprocessors, double parts, double longest, double steps, bool equal, int blocks_per_sm) {
  const int at_work = multiprocessors * blocks_per_sm;
  const double alone = blocks_per_sm > 1 ? kAlone : 1;
  if (parts <= multiprocessors) return alone * (longest + kStart);
  if (equal) {
    const auto rounds = static_cast<int>(parts / at_work);
    const double rest = parts - rounds * at_work;
    return (longest + kStart) * (rounds + (rest < 0.5 ? 0 : rest <= multiprocessors ? alone : 1));
  }
  // Long ones come first and share a multiprocessor with short ones, or with one after the other.
  const double mean = (steps + parts * kStart) / at_work;
  return std::max(mean, alone * (longest + kStart) + (1 - alone) * std::min(longest + kStart, mean));
}

}  // namespace

SplitPlan plan_splits(const AttentionFwdParams& p, const FwdFacts& facts, int head_dim, Features features) {
  if (p.num_splits > 0) return {.splits = std::min<int64_t>(p.num_splits, kMostSplits)};
  const sm80::FwdPolicy policy = sm80::fwd_policy(head_dim, features);
  const int64_t tiles = std::max<int64_t>(row_tiles(p, facts, policy.block_m()), 1);
  const int64_t at_work = int64_t{facts.device.multiprocessors} * policy.blocks_per_sm;
  if (tiles > kRounds * at_work) return {};

  const TileSteps each = tile_steps(p, facts, policy);
  const bool banded = facts.banded;
  const double scale = static_cast<double>(tiles) / each.samples, steps = scale * each.sum;
  const auto time_of = [&](double parts, double longest, bool equal) {
    return time_of_blocks(facts.device.multiprocessors, parts, longest, steps, equal, policy.blocks_per_sm);
  };
  const auto with_merge = [&](double time, double parts) {
    return time + kMerge + kMergePart * parts * std::max(head_dim, 128) / 128;
  };
  SplitPlan best;
  double best_time = time_of(static_cast<double>(tiles), each.most, !banded);
  const auto most = std::min({int64_t{each.most} / kFewestSteps, int64_t{kMostSplits}, kRounds * at_work / tiles + 1});
  for (int splits = 2; splits <= most; ++splits) {
    const int part_steps = (each.most + splits - 1) / splits;
    const auto consider = [&](double parts, bool equal, int64_t part_steps_or_0) {
      const double time = with_merge(time_of(parts, part_steps, equal), parts);
      if (time < best_time) best_time = time, best = {splits, static_cast<int>(part_steps_or_0)};
    };
    // As many parts of every tile; where tiles differ and their lengths are known, parts of equal length.
    consider(static_cast<double>(tiles * splits), !banded, 0);
    if (banded && !p.seq.packed() && (each.most + part_steps - 1) / part_steps == splits) {
      consider(scale * each.parts(part_steps), true, part_steps);
    }
  }
  return best;
}

bool has_short_sequences(const AttentionFwdParams& p, const FwdFacts& facts, int head_dim, Features features) {
  if (features != Features::kPlain || !sm80::may_span(head_dim) || !p.seq.packed() || p.seq.seqused_k) return false;
  if (p.mods.sinks.data) return false;  // a row has to know its sequence, and whether it has one
  const sm80::FwdPolicy policy = sm80::fwd_policy(head_dim, features);
  const int64_t block_m = policy.block_m(), at_work = int64_t{facts.device.multiprocessors} * policy.blocks_per_sm;
  return p.num_splits <= 1 && row_tiles(p, facts, policy.block_m()) > at_work &&
         p.shape.seqlen_q * facts.packed_heads * 4 <= facts.sequences * block_m * 3 &&
         p.shape.seqlen_k <= facts.sequences * block_m;
}

}  // namespace xformers::cuda
