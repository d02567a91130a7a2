// Forward attention for few rows, what its kernels share: one or a few queries against many keys, the case of text
// generation. Every key and value is read once from memory for all heads that share it, and that reading is what it
// costs.
//
// A stream is a set of rows that share their keys: the heads of a group, or one head. A task holds all streams of a
// sequence and takes its keys block by block, stream by stream, so that the interleaved heads of [seqlen, heads,
// head_dim] are read while their neighbourhood is in the cache.
#pragma once

#include "xformers/kernels/cpu/attention/fwd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class T>
class DecodeStreams {
 public:
  using Compute = typename ComputeOf<T>::type;

 protected:
  using C = Compute;

  struct Row {
    int64_t group, head, query;
    C max, sum;       // max: of the scores, as the kernel has them
    BlockRow blocks;  // of a block mask
  };

  HWY_INLINE DecodeStreams(const AttentionFwdParams& params, ForwardPartials<C> partials)
      : p_(params), partials_(partials), key_rows_(params) {
    const AttentionShape& shape = p_.shape;
    shared_ = shares_heads(p_);
    num_streams_ = shared_ ? shape.num_groups : shape.num_heads();
  }

  // Rows run over groups, heads, queries, the last fastest.
  HWY_INLINE void start_rows(const ForwardTask& task, ptrdiff_t num_rows) {
    const int64_t num_queries = task.queries.end - task.queries.begin;
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const int64_t index = r / num_queries, query = r % num_queries;
      const int64_t group = index / p_.shape.heads_per_group, head = index % p_.shape.heads_per_group;
      rows_[r] = {group, head, query, -kInfinity<C>, C(0), {}};
      if (p_.blocks.present()) {  // dense: the task's index is the batch row
        rows_[r].blocks = BlockRow(p_.blocks, task.sequence, group, head, query, task.keys.begin);
      }
    }
  }

  // The first of keys key, key + step, ... that begins `step` keys of which some row may see one; `end` if none does.
  HWY_INLINE int64_t next_step(int64_t key, int64_t end, ptrdiff_t step, ptrdiff_t num_rows) {
    if (!p_.blocks.present()) return key;
    int64_t next = end;
    for (ptrdiff_t r = 0; r < num_rows && next > key; ++r) {
      const int64_t first = rows_[r].blocks.next_key(p_.blocks, key, end);
      next = first < next ? first : next;
    }
    return next < end ? key + (next - key) / step * step : end;
  }
  HWY_INLINE ptrdiff_t rows_per_stream(const ForwardTask& task) const {
    return (shared_ ? p_.shape.heads_per_group : 1) * (task.queries.end - task.queries.begin);
  }

  // Keys [first, last) of a block that a row may see, counted from the block's begin.
  HWY_INLINE Range visible(const Row& row, Range keys, const Band& band) const {
    const int64_t count = keys.end - keys.begin;
    const int64_t first = clamp_to(band.first_key(row.query) - keys.begin, 0, count);
    return {first, clamp_to(band.last_key(row.query) + 1 - keys.begin, first, count)};
  }

  // Cap, ALiBi and bias of scores [keys][kRows] of a stream's rows, which softmax_scale has been multiplied to. count:
  // numbers of the array, a multiple of the vector.
  template <int kRows>
  HWY_INLINE void modify_rows(C* scores, ptrdiff_t count, const Row* rows, ptrdiff_t num_rows, Range keys,
                              const Sequence& sequence) const {
    const ScoreModifiers& mods = p_.mods;
    if (mods.softcap > 0) cap_scores<C>(scores, count, C(1), static_cast<C>(mods.softcap), nullptr);
    for (ptrdiff_t r = 0; mods.alibi_slopes.data && r < num_rows; ++r) {
      const C slope = number_of<C>(mods.alibi_slopes, sequence.index, rows[r].group, rows[r].head);
      const int64_t diagonal = rows[r].query + alibi_shift(p_.band, sequence) - keys.begin;
      for (int64_t n = 0; n < keys.end - keys.begin; ++n) {
        scores[n * kRows + r] -= slope * static_cast<C>(n < diagonal ? diagonal - n : n - diagonal);
      }
    }
    for (ptrdiff_t r = 0; mods.bias.data && r < num_rows; ++r) {
      const T* bias = bias_row<const T>(mods.bias, sequence.index, rows[r].query, rows[r].group, rows[r].head) +
                      keys.begin * mods.bias.k_stride;
      for (int64_t n = 0; n < keys.end - keys.begin; ++n) {
        const C added = static_cast<C>(to_compute(bias[n * mods.bias.k_stride]));
        C& score = scores[n * kRows + r];
        score = added == -kInfinity<C> ? added : score + added;  // hidden, whatever the score is
      }
    }
  }

  // out: the row's sum of probabilities times values, relative to row.max.
  HWY_INLINE void finish(ptrdiff_t r, const C* out, const ForwardTask& task, const Sequence& sequence) {
    const Row& row = rows_[r];
    const ptrdiff_t dim_v = p_.shape.head_dim_v;
    C inverse = row.sum == C(0) ? C(0) : C(1) / row.sum;
    if (task.partial_row >= 0) {
      store_row(out, inverse, partials_.out + (task.partial_row + r) * dim_v, dim_v);
      partials_.row_max[task.partial_row + r] = row.max;
      partials_.row_sum[task.partial_row + r] = row.sum;
      return;
    }
    const int64_t at = sequence.q_begin + row.query;
    const Tag<C> d;
    LogSum<C> total = log_sum<C>(hn::Set(d, row.max), score_factor<C>(p_), hn::Set(d, row.sum));
    if (p_.mods.sinks.data) {
      const C sink = number_of<C>(p_.mods.sinks, sequence.index, row.group, row.head);
      const SunkRows<C> sunk = add_sink(total, hn::Set(d, sink));
      total = sunk.sum, inverse *= hn::GetLane(sunk.kept);
    }
    store_out<T>(p_, out, inverse, sequence.batch, at, row.group, row.head);
    store_lse(p_, hn::GetLane(total.lse), hn::GetLane(total.low), sequence.batch, at, row.group, row.head);
  }

  const AttentionFwdParams& p_;
  ForwardPartials<C> partials_;
  KeyRows<T> key_rows_;
  bool shared_;  // the heads of a group share key and value
  ptrdiff_t num_streams_;
  Row* rows_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
