// Cuts an attention problem into tasks for the workers. Tasks depend on the shapes and on the number of threads alone,
// so results repeat bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "xformers/kernels/cpu/attention/band.h"
#include "xformers/kernels/params/attention.h"
#include "xformers/kernels/params/block_mask.h"

namespace xformers::cpu {

// The kernels' blocks: columns are (head, query) pairs.
inline constexpr int64_t kBlockColumns = 64, kBlockKeys = 128;
inline constexpr int64_t kMaxColumnBlocks = 16;

// Column blocks that a forward task may hold: fewer for wide heads, so that its memory stays near the second-level
// cache. Of a block mask few see a packed block of keys: as many more as the cache holds share it.
XFORMERS_INLINE int64_t column_blocks(const AttentionProblem& problem) {
  const AttentionShape& shape = problem.shape;
  const int64_t widest = shape.head_dim > shape.head_dim_v ? shape.head_dim : shape.head_dim_v;
  if (problem.blocks.present() && widest <= 64) return 2 * kMaxColumnBlocks;
  return widest <= 128 ? kMaxColumnBlocks : widest <= 256 ? kMaxColumnBlocks / 2 : kMaxColumnBlocks / 4;
}

// The heads of a group read the same rows of key and value.
XFORMERS_INLINE bool shares_heads(const AttentionFwdParams& params) {
  const KvQuantization& quantization = params.quantization;
  const bool coefficients_too = quantization.format != KvFormat::kFp8 || (quantization.k_scale_shift.head_stride == 0 &&
                                                                          quantization.v_scale_shift.head_stride == 0);
  return params.shape.heads_per_group > 1 && params.k.head_stride == 0 && params.v.head_stride == 0 && coefficients_too;
}

// Numbers in dq of one head as backward accumulates it: blocks of [head_dim to 16][64 queries].
XFORMERS_INLINE int64_t dq_size(int64_t seqlen_q, int64_t head_dim) {
  return (seqlen_q + kBlockColumns - 1) / kBlockColumns * kBlockColumns * ((head_dim + 15) / 16 * 16);
}

// Forward: queries [queries.begin, queries.end) of heads [head_begin, head_end) of groups [group_begin, group_end),
// over these keys. Tiled kernels get one group at a time and heads that share key and value; decode kernels get all
// heads, so that they read the rows of K and V in the order in which they lie in memory.
struct ForwardTask {
  int64_t sequence, group_begin, group_end, head_begin, head_end;
  Range queries, keys;
  int64_t
      partial_row;  // first row in the partial results, -1: the task sees all its keys and writes out and lse itself
};

// Rows whose keys were split over several tasks: their partial results are merged in order. Rows run over groups,
// heads, queries, the last fastest.
struct ForwardMerge {
  int64_t sequence, group_begin, group_end, head_begin, head_end;
  Range queries;
  int64_t partial_row;  // of the first split; split s starts num_rows() * s later
  int64_t num_splits;
  int64_t num_rows() const {
    return (group_end - group_begin) * (head_end - head_begin) * (queries.end - queries.begin);
  }
};

struct ForwardPlan {
  std::vector<ForwardTask> tasks;  // heaviest first within a head; beside a block mask, of all
  std::vector<ForwardMerge> merges;
  int64_t partial_rows = 0;
};

ForwardPlan plan_forward(const AttentionFwdParams& params, int num_threads);
ForwardPlan plan_decode(const AttentionFwdParams& params, int num_threads);

// The most (head, query) pairs that share their keys: heads of a group where they share key and value, times the
// queries of the longest sequence.
int64_t rows_per_key(const AttentionFwdParams& params);

// Backward: keys [k_begin, k_end) of one head, all its queries.
struct BackwardTask {
  int64_t sequence, group, head;
  Range keys;
  int64_t partial;  // index of the task's share of dq, in floats; -1: the task has all keys and writes dq itself
  bool first_keys;  // of all tasks of the head, the one that has its first keys
};

// dq of one head is the sum over num_splits shares, `stride` floats apart.
struct BackwardMerge {
  int64_t sequence, group, head;
  int64_t partial, stride, num_splits;
};

struct BackwardPlan {
  std::vector<BackwardTask> tasks;
  std::vector<BackwardMerge> merges;
  int64_t partial_size = 0;  // elements of all shares
  int64_t longest_own = 0;   // queries of the longest sequence among tasks that write dq themselves
  // Tasks [chains[i], chains[i + 1]) add to the same elements of dbias, one after the other. Empty: none do.
  std::vector<int64_t> chains;
};

BackwardPlan plan_backward(const AttentionBwdParams& params, int num_threads);

}  // namespace xformers::cpu
