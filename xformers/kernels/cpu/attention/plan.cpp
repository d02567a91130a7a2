#include "xformers/kernels/cpu/attention/plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace xformers::cpu {
namespace {

constexpr int64_t kMinKeysPerSplit = 512;             // below this, merging costs more than the split gains
constexpr int64_t kChosenSplitAlign = 4;              // keys; products take them two or four at a time
constexpr int64_t kMaxShareBytes = int64_t{1} << 29;  // memory for shares of dq

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many visible keys the rows of a block mask have among every `align` keys from `begin` on.
class VisibleKeys {
 public:
  VisibleKeys(Range keys, int64_t align) : keys_(keys), align_(align), of_(ceil_div(keys.end - keys.begin, align)) {}

  // The keys of block `k_block`, which `count` rows see.
  void add(const BlockMask& mask, int64_t k_block, int64_t count) {
    const int64_t begin = std::max(k_block * mask.block_k, keys_.begin) - keys_.begin;
    const int64_t end = std::min((k_block + 1) * mask.block_k, keys_.end) - keys_.begin;
    for (int64_t at = begin; at < end; at = (at / align_ + 1) * align_) {
      const int64_t here = std::min((at / align_ + 1) * align_, end) - at;
      of_[at / align_] += here * count;
      total_ += here * count;
    }
  }
  int64_t total() const { return total_; }

  // The keys in `splits` parts of about as many visible ones, multiples of `align`. The last ones may be empty.
  std::vector<Range> parts(int64_t splits) const {
    std::vector<Range> parts;
    int64_t seen = 0;
    size_t tile = 0;
    for (int64_t split = 1; split <= splits; ++split) {
      const int64_t begin = parts.empty() ? keys_.begin : parts.back().end;
      while (tile < of_.size() && (split == splits || seen + of_[tile] / 2 < total_ * split / splits)) {
        seen += of_[tile++];
      }
      const int64_t end = keys_.begin + static_cast<int64_t>(tile) * align_;
      parts.push_back({begin, std::min(end, keys_.end)});
    }
    return parts;
  }

 private:
  Range keys_;
  int64_t align_, total_ = 0;
  std::vector<int64_t> of_;
};

// Those of a task's rows.
VisibleKeys visible_keys(const BlockMask& mask, const ForwardTask& task, int64_t align) {
  VisibleKeys visible(task.keys, align);
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    for (int64_t head = task.head_begin; head < task.head_end; ++head) {
      for (int64_t query = task.queries.begin; query < task.queries.end;
           query = (query / mask.block_q + 1) * mask.block_q) {
        BlockRow row(mask, task.sequence, group, head, query, task.keys.begin);
        for (int64_t key = row.next_key(mask, task.keys.begin, task.keys.end); key < task.keys.end;
             key = row.next_key(mask, (key / mask.block_k + 1) * mask.block_k, task.keys.end)) {
          visible.add(mask, key / mask.block_k, 1);
        }
      }
    }
  }
  return visible;
}

// How many keys a row of the task sees: the range's, or of a block mask the rows' average.
int64_t length_of(const BlockMask& mask, const ForwardTask& task) {
  if (task.keys.empty()) return 0;
  if (!mask.present()) return task.keys.end - task.keys.begin;
  const int64_t first = task.queries.begin / mask.block_q, end = ceil_div(task.queries.end, mask.block_q);
  const int64_t rows = (task.group_end - task.group_begin) * (task.head_end - task.head_begin) * (end - first);
  return visible_keys(mask, task, kBlockColumns).total() / std::max(rows, int64_t{1});
}

// The tasks with the most visible keys first, so that threads finish together.
void sort_by_visible_keys(const BlockMask& mask, ForwardPlan& plan) {
  std::vector<std::pair<int64_t, ForwardTask>> by_work;
  for (const ForwardTask& task : plan.tasks) {
    by_work.emplace_back(visible_keys(mask, task, kBlockColumns).total(), task);
  }
  std::stable_sort(by_work.begin(), by_work.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; i < by_work.size(); ++i) plan.tasks[i] = by_work[i].second;
}

// The keys in `splits` parts, each a multiple of `align`; of a block mask, as many visible ones in each. The last ones
// may be empty.
std::vector<Range> parts_of(const BlockMask& mask, const ForwardTask& task, int64_t splits, int64_t align) {
  if (mask.present()) return visible_keys(mask, task, std::max(align, kBlockColumns)).parts(splits);
  const Range keys = task.keys;
  const int64_t step = ceil_div(ceil_div(keys.end - keys.begin, splits), align) * align;
  std::vector<Range> parts;
  for (int64_t split = 0; split < splits; ++split) {
    parts.push_back(
        {std::min(keys.begin + split * step, keys.end), std::min(keys.begin + (split + 1) * step, keys.end)});
  }
  return parts;
}

// The task itself, or its keys in `splits` parts to be merged.
void add_tasks(ForwardPlan& plan, const BlockMask& mask, ForwardTask task, int64_t splits, int64_t align) {
  if (task.keys.empty()) task.keys = {0, 0};
  if (splits == 1) {
    plan.tasks.push_back(task);
    return;
  }
  plan.merges.push_back({task.sequence, task.group_begin, task.group_end, task.head_begin, task.head_end, task.queries,
                         plan.partial_rows, splits});
  for (const Range& keys : parts_of(mask, task, splits, align)) {
    ForwardTask part = task;
    part.keys = keys;
    part.partial_row = plan.partial_rows;
    plan.tasks.push_back(part);
    plan.partial_rows += plan.merges.back().num_rows();
  }
}

// Keys that the queries see, from a multiple of 64: kernels number keys from multiples of 32.
Range aligned_key_range(const Band& band, Range queries) {
  const Range keys = band.key_range(queries);
  return {keys.begin / kBlockColumns * kBlockColumns, keys.end};
}

// dbias as slices [seqlen_q, seqlen_k] that have no element in common: those of a sequence and head, all sequences and
// heads whose strides are 0 taken for one.
int64_t dbias_slice(const AttentionBwdParams& params, int64_t sequence, int64_t group, int64_t head) {
  const ScoreBias& dbias = params.dbias;
  const int64_t s = dbias.batch_stride ? sequence : 0, g = dbias.group_stride ? group : 0,
                h = dbias.head_stride ? head : 0;
  return (s * params.shape.num_groups + g) * params.shape.heads_per_group + h;
}
int64_t num_dbias_slices(const AttentionBwdParams& params) {
  const ScoreBias& dbias = params.dbias;
  return (dbias.batch_stride ? num_sequences(params.shape, params.seq) : 1) *
         (dbias.group_stride ? params.shape.num_groups : 1) * (dbias.head_stride ? params.shape.heads_per_group : 1);
}

// Sorts tasks by their chains, which keeps the order of each chain's own.
void link(BackwardPlan& plan, const std::vector<int64_t>& chain_of) {
  std::vector<size_t> order(plan.tasks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return chain_of[a] < chain_of[b]; });
  std::vector<BackwardTask> tasks;
  for (const size_t task : order) {
    if (tasks.empty() || chain_of[task] != chain_of[order[tasks.size() - 1]]) {
      plan.chains.push_back(static_cast<int64_t>(tasks.size()));
    }
    tasks.push_back(plan.tasks[task]);
  }
  plan.chains.push_back(static_cast<int64_t>(tasks.size()));
  plan.tasks = std::move(tasks);
}

}  // namespace

int64_t rows_per_key(const AttentionFwdParams& params) {
  int64_t longest = 0;
  for (int64_t s = 0; s < (params.seq.packed() ? params.seq.num_sequences : 1); ++s) {
    longest = std::max(longest, sequence_at(params.shape, params.seq, s).seqlen_q);
  }
  return (shares_heads(params) ? params.shape.heads_per_group : 1) * longest;
}

ForwardPlan plan_forward(const AttentionFwdParams& params, int num_threads) {
  const int64_t max_columns = column_blocks(params) * kBlockColumns;
  const AttentionShape& shape = params.shape;
  const bool shared = shares_heads(params);
  const int64_t num_seqs = num_sequences(shape, params.seq);
  int64_t total_queries = 0, longest_q = 0;
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t seqlen_q = sequence_at(shape, params.seq, s).seqlen_q;
    total_queries += seqlen_q;
    longest_q = std::max(longest_q, seqlen_q);
  }
  ForwardPlan plan;
  if (total_queries == 0 || shape.num_heads() == 0) return plan;

  // Heads of a group go together while their rows fit; then as many blocks of queries as leave each thread some tasks.
  const int64_t short_q = std::min(longest_q, kBlockColumns);
  const int64_t heads = shared ? std::clamp(max_columns / short_q, int64_t{1}, shape.heads_per_group) : 1;
  const int64_t head_tasks = shape.num_groups * ceil_div(shape.heads_per_group, heads);
  int64_t queries = std::max(max_columns / heads / kBlockColumns, int64_t{1}) * kBlockColumns;
  const int64_t wanted_tasks = num_threads > 1 ? int64_t{4} * num_threads : 1;
  while (queries > kBlockColumns && head_tasks * ceil_div(total_queries, queries) < wanted_tasks) queries /= 2;
  queries = std::max(queries / kBlockColumns, int64_t{1}) * kBlockColumns;

  int64_t num_tasks = 0;
  for (int64_t s = 0; s < num_seqs; ++s) {
    num_tasks += head_tasks * ceil_div(sequence_at(shape, params.seq, s).seqlen_q, queries);
  }
  const int64_t wanted_splits =
      num_tasks < 2 * num_threads && num_threads > 1 ? ceil_div(2 * num_threads, num_tasks) : 1;

  plan.tasks.reserve(num_tasks);
  for (int64_t s = 0; s < num_seqs; ++s) {
    const Sequence sequence = sequence_at(shape, params.seq, s);
    const Band band(params.band, sequence);
    for (int64_t group = 0; group < shape.num_groups; ++group) {
      for (int64_t head = 0; head < shape.heads_per_group; head += heads) {
        const int64_t head_end = std::min(head + heads, shape.heads_per_group);
        for (int64_t q_end = sequence.seqlen_q; q_end > 0;) {  // from the end: with causal masks the longest rows
          const int64_t q_begin = (q_end - 1) / queries * queries;
          const Range rows{q_begin, q_end}, keys = aligned_key_range(band, rows);
          const ForwardTask task{s, group, group + 1, head, head_end, rows, keys, -1};
          if (params.num_splits > 0) {
            add_tasks(plan, params.blocks, task, params.num_splits, kChosenSplitAlign);
          } else {
            add_tasks(plan, params.blocks, task,
                      std::clamp(length_of(params.blocks, task) / kMinKeysPerSplit, int64_t{1}, wanted_splits),
                      kBlockColumns);
          }
          q_end = q_begin;
        }
      }
    }
  }
  if (params.blocks.present()) sort_by_visible_keys(params.blocks, plan);
  return plan;
}

ForwardPlan plan_decode(const AttentionFwdParams& params, int num_threads) {
  const AttentionShape& shape = params.shape;
  const int64_t num_seqs = num_sequences(shape, params.seq);
  ForwardPlan plan;
  if (shape.num_heads() == 0) return plan;
  const auto task_of = [&](int64_t s) {
    const Sequence sequence = sequence_at(shape, params.seq, s);
    const Range queries{0, sequence.seqlen_q};
    const Range keys = queries.empty() ? Range{0, 0} : aligned_key_range(Band(params.band, sequence), queries);
    return ForwardTask{s, 0, shape.num_groups, 0, shape.heads_per_group, queries, keys, -1};
  };
  int64_t total_keys = 0;
  for (int64_t s = 0; s < num_seqs; ++s) {
    total_keys += length_of(params.blocks, task_of(s));
  }
  // Several tasks a thread, so that sequences of different lengths balance; one is enough for a single thread.
  const int64_t keys_per_task =
      std::max(num_threads > 1 ? total_keys / (4 * num_threads) : total_keys, kMinKeysPerSplit);
  for (int64_t s = 0; s < num_seqs; ++s) {
    const ForwardTask task = task_of(s);
    if (task.queries.empty()) continue;
    if (params.num_splits > 0) {
      add_tasks(plan, params.blocks, task, params.num_splits, kChosenSplitAlign);
    } else {
      add_tasks(plan, params.blocks, task,
                std::max(ceil_div(length_of(params.blocks, task), keys_per_task), int64_t{1}), kBlockColumns);
    }
  }
  if (params.blocks.present()) {
    sort_by_visible_keys(params.blocks, plan);
    return plan;
  }
  // The longest first, so that threads finish together.
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(), [](const ForwardTask& a, const ForwardTask& b) {
    return a.keys.end - a.keys.begin > b.keys.end - b.keys.begin;
  });
  return plan;
}

BackwardPlan plan_backward(const AttentionBwdParams& params, int num_threads) {
  const AttentionShape& shape = params.shape;
  const int64_t num_seqs = num_sequences(shape, params.seq);
  BackwardPlan plan;
  const int64_t whole_tasks = num_seqs * shape.num_heads();
  // What may run at the same time if no keys are split.
  const int64_t alone = params.dbias_shared ? num_dbias_slices(params) : whole_tasks;
  const int64_t wanted = num_threads > 1 && alone > 0 && alone % num_threads != 0 && alone < 4 * num_threads
                             ? ceil_div(4 * num_threads, alone)
                             : 1;
  const auto affordable_splits = [&](int64_t share) {
    return std::max(kMaxShareBytes / 4 / std::max(share * whole_tasks, int64_t{1}), int64_t{1});
  };
  const auto step_of = [](int64_t seqlen_k, int64_t splits) {
    return ceil_div(ceil_div(seqlen_k, splits), kBlockKeys) * kBlockKeys;
  };
  // Tasks that share a slice of dbias and have the same keys of it form a chain, so all sequences are split alike.
  int64_t chain_keys = 0, chain_splits = 1;
  if (params.dbias_shared) {
    int64_t longest_q = 0, longest_k = 0;
    for (int64_t s = 0; s < num_seqs; ++s) {
      const Sequence sequence = sequence_at(shape, params.seq, s);
      longest_q = std::max(longest_q, sequence.seqlen_q), longest_k = std::max(longest_k, sequence.seqlen_k);
    }
    const int64_t affordable = affordable_splits(dq_size(longest_q, shape.head_dim));
    const int64_t splits = std::clamp(std::min(longest_k / kBlockKeys, affordable), int64_t{1}, wanted);
    chain_keys = std::max(step_of(longest_k, splits), kBlockKeys);
    chain_splits = std::max(ceil_div(longest_k, chain_keys), int64_t{1});
  }
  // The keys of a head: of a block mask as many visible ones in each part.
  const auto parts_of = [&](int64_t s, int64_t group, int64_t head, int64_t seqlen_k, int64_t splits, int64_t step) {
    const BlockMask& mask = params.blocks;
    std::vector<Range> parts;
    if (mask.present()) {
      VisibleKeys visible({0, seqlen_k}, kBlockKeys);
      const int64_t layout = s * mask.batch_stride + group * mask.group_stride + head * mask.head_stride;
      const int32_t* const offsets = mask.query_offsets + layout * (mask.num_k_blocks + 1);
      for (int64_t k_block = 0; k_block * mask.block_k < seqlen_k; ++k_block) {
        visible.add(mask, k_block, offsets[k_block + 1] - offsets[k_block]);
      }
      return visible.parts(splits);
    }
    for (int64_t split = 0; split < splits; ++split) {
      parts.push_back({std::min(split * step, seqlen_k), std::min((split + 1) * step, seqlen_k)});
    }
    return parts;
  };
  std::vector<int64_t> chain_of;  // each task
  for (int64_t s = 0; s < num_seqs; ++s) {
    const Sequence sequence = sequence_at(shape, params.seq, s);
    const int64_t share = dq_size(sequence.seqlen_q, shape.head_dim);
    int64_t splits = std::clamp(std::min(sequence.seqlen_k / kBlockKeys, affordable_splits(share)), int64_t{1}, wanted);
    int64_t step = step_of(sequence.seqlen_k, splits);
    if (params.dbias_shared) {
      step = chain_keys;
      splits = std::max(ceil_div(sequence.seqlen_k, step), int64_t{1});
    }
    for (int64_t group = 0; group < shape.num_groups; ++group) {
      for (int64_t head = 0; head < shape.heads_per_group; ++head) {
        if (splits == 1) {
          plan.tasks.push_back({s, group, head, {0, sequence.seqlen_k}, -1, true});
          plan.longest_own = std::max(plan.longest_own, sequence.seqlen_q);
        } else {
          plan.merges.push_back({s, group, head, plan.partial_size, share, splits});
          int64_t split = 0;
          for (const Range& keys : parts_of(s, group, head, sequence.seqlen_k, splits, step)) {
            plan.tasks.push_back({s, group, head, keys, plan.partial_size, split++ == 0});
            plan.partial_size += share;
          }
        }
        for (int64_t split = 0; params.dbias_shared && split < splits; ++split) {
          chain_of.push_back(dbias_slice(params, s, group, head) * chain_splits + split);
        }
      }
    }
  }
  if (params.dbias_shared) link(plan, chain_of);
  return plan;
}

}  // namespace xformers::cpu
