// Forward attention for few rows, what its kernels share: one or a few queries against many keys, the case of text
// generation. Every key and value is read once from memory for all heads that share it, and that reading is what it costs.
//
// A stream is a set of rows that share their keys: the heads of a group, or one head. A task holds all streams of a
// sequence and takes its keys block by block, stream by stream. Meanwhile the next block is prefetched row by row in the
// order in which it lies in memory, which the streams' own accesses are not: heads are interleaved in
// [seqlen, heads, head_dim].
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
    C max, sum;  // max: of the scores times scale * log2(e)
  };

  HWY_INLINE DecodeStreams(const AttentionFwdParams& params, ForwardPartials<C> partials) : p_(params), partials_(partials) {
    const AttentionShape& shape = p_.shape;
    shared_ = shape.heads_per_group > 1 && p_.k.head_stride == 0 && p_.v.head_stride == 0;
    num_streams_ = shared_ ? shape.num_groups : shape.num_heads();
  }

  // Rows run over groups, heads, queries, the last fastest.
  HWY_INLINE void start_rows(const ForwardTask& task, ptrdiff_t num_rows) {
    const int64_t num_queries = task.queries.end - task.queries.begin;
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const int64_t head = r / num_queries;
      rows_[r] = {head / p_.shape.heads_per_group, head % p_.shape.heads_per_group, r % num_queries, -kInfinity<C>, C(0)};
    }
  }
  HWY_INLINE ptrdiff_t rows_per_stream(const ForwardTask& task) const {
    return (shared_ ? p_.shape.heads_per_group : 1) * (task.queries.end - task.queries.begin);
  }

  // Rows of K or V to prefetch, in memory order, one per call of next().
  class Ahead {
   public:
    HWY_INLINE void next() {
      if (left_ == 0) return;
      --left_;
      for (ptrdiff_t c = 0; c < dim_; c += 64 / static_cast<ptrdiff_t>(sizeof(T))) __builtin_prefetch(row_ + c, 0, 2);
      row_ += inner_stride_;
      if (++inner_ == inner_count_) {
        inner_ = 0;
        row_ += outer_stride_ - inner_count_ * inner_stride_;
      }
    }

   private:
    friend class DecodeStreams;
    const T* row_;
    ptrdiff_t left_ = 0, dim_, inner_, inner_count_, inner_stride_, outer_stride_;
  };

  // This stream's share of the rows that the next block has in all streams: as many as one stream has keys.
  HWY_INLINE Ahead look_ahead(const HeadsTensor& tensor, ptrdiff_t dim, Range next, const Sequence& sequence, ptrdiff_t stream) const {
    const AttentionShape& shape = p_.shape;
    const bool one_stride = shared_ || shape.heads_per_group == 1 || tensor.group_stride == shape.heads_per_group * tensor.head_stride;
    const ptrdiff_t stream_stride = shared_ || shape.heads_per_group == 1 ? tensor.group_stride : tensor.head_stride;
    const ptrdiff_t num_keys = next.end - next.begin;
    Ahead ahead;
    if (num_keys == 0 || !one_stride) return ahead;
    const bool keys_outside = tensor.seq_stride >= stream_stride;
    ahead.left_ = num_keys;
    ahead.dim_ = dim;
    ahead.inner_count_ = keys_outside ? num_streams_ : num_keys;
    ahead.inner_stride_ = keys_outside ? stream_stride : tensor.seq_stride;
    ahead.outer_stride_ = keys_outside ? tensor.seq_stride : stream_stride;
    const ptrdiff_t first = stream * num_keys, outer = first / ahead.inner_count_;
    ahead.inner_ = first % ahead.inner_count_;
    ahead.row_ = row_of<const T>(tensor, sequence.batch, sequence.k_begin + next.begin, 0, 0) + outer * ahead.outer_stride_ +
                 ahead.inner_ * ahead.inner_stride_;
    return ahead;
  }

  // Keys [first, last) of a block that a row may see, counted from the block's begin.
  HWY_INLINE Range visible(const Row& row, Range keys, const Band& band) const {
    const int64_t count = keys.end - keys.begin;
    const int64_t first = clamp_to(band.first_key(row.query) - keys.begin, 0, count);
    return {first, clamp_to(band.last_key(row.query) + 1 - keys.begin, first, count)};
  }

  // out: the row's sum of probabilities times values, relative to row.max.
  HWY_INLINE void finish(ptrdiff_t r, const C* out, const ForwardTask& task, const Sequence& sequence) {
    const Row& row = rows_[r];
    const ptrdiff_t dim_v = p_.shape.head_dim_v;
    const bool empty = row.sum == C(0);
    const C inverse = empty ? C(0) : C(1) / row.sum;
    const Tag<C> d;
    const C lse = empty ? -kInfinity<C> : row.max * static_cast<C>(kLn2) + hn::GetLane(hn::Log(d, hn::Set(d, row.sum)));
    if (task.partial_row >= 0) {
      store_row(out, inverse, partials_.out + (task.partial_row + r) * dim_v, dim_v);
      partials_.lse[task.partial_row + r] = lse;
      return;
    }
    const int64_t at = sequence.q_begin + row.query;
    store_row(out, inverse, row_of<T>(p_.out, sequence.batch, at, row.group, row.head), dim_v);
    if (p_.lse.data) *row_of<C>(p_.lse, sequence.batch, at, row.group, row.head) = lse;
  }

  const AttentionFwdParams& p_;
  ForwardPartials<C> partials_;
  bool shared_;  // the heads of a group share key and value
  ptrdiff_t num_streams_;
  Row* rows_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
