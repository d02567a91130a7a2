// Who sees whom: the band of one sequence's score matrix. Query i sees key j iff first_key(i) <= j <= last_key(i).
// Plain integer arithmetic for every device; Index as in sequence.h.
#pragma once

#include "xformers/kernels/params/sequence.h"

namespace xformers {

template <class Index>
struct RangeOf {
  Index begin, end;
  XFORMERS_INLINE bool empty() const { return begin >= end; }
};

template <class Index>
class BandOf {
  using Range = RangeOf<Index>;

 public:
  BandOf() = default;
  // Windows are cut to lengths beyond any sequence before anything is added to them: they may be as large as int64.
  XFORMERS_INLINE BandOf(const MaskBand& mask, const SequenceOf<Index>& sequence)
      : seqlen_q_(sequence.seqlen_q), seqlen_k_(sequence.seqlen_k) {
    constexpr int64_t kFar = kMaxSeqlenOf<Index>;
    const int64_t shift = mask.bottom_right ? int64_t{sequence.seqlen_k} - sequence.seqlen_q : 0;
    const int64_t left = mask.window_left == kUnbounded ? 2 * kFar : clamp_to(mask.window_left, 0, 2 * kFar);
    const int64_t right = mask.window_right == kUnbounded ? 2 * kFar : clamp_to(mask.window_right, 0, 2 * kFar);
    below_ = static_cast<Index>(clamp_to(shift - left, -kFar, kFar));
    above_ = static_cast<Index>(clamp_to(shift + right, -kFar, kFar - 1));
  }

  // Not clamped to the sequence.
  XFORMERS_INLINE Index first_key(Index query) const { return query + below_; }
  XFORMERS_INLINE Index last_key(Index query) const { return query + above_; }
  XFORMERS_INLINE Index first_query(Index key) const { return key - above_; }
  XFORMERS_INLINE Index last_query(Index key) const { return key - below_; }

  // Keys that any of these queries sees; queries that see any of these keys.
  XFORMERS_INLINE Range key_range(Range queries) const {
    return {clamp_to(first_key(queries.begin), 0, seqlen_k_), clamp_to(last_key(queries.end - 1) + 1, 0, seqlen_k_)};
  }
  XFORMERS_INLINE Range query_range(Range keys) const {
    return {clamp_to(first_query(keys.begin), 0, seqlen_q_), clamp_to(last_query(keys.end - 1) + 1, 0, seqlen_q_)};
  }
  // Every one of these queries sees every one of these keys.
  XFORMERS_INLINE bool is_full(Range queries, Range keys) const {
    return first_key(queries.end - 1) <= keys.begin && keys.end - 1 <= last_key(queries.begin) && keys.end <= seqlen_k_;
  }
  // Keys that every one of these queries sees; it may begin before the sequence.
  XFORMERS_INLINE Range full_range(Range queries) const {
    const Index end = last_key(queries.begin) + 1;
    return {first_key(queries.end - 1), end < seqlen_k_ ? end : seqlen_k_};
  }
  // One element; keys past the sequence are invisible.
  XFORMERS_INLINE bool visible(Index query, Index key) const {
    return key >= first_key(query) && key <= last_key(query) && key < seqlen_k_;
  }

 private:
  Index seqlen_q_, seqlen_k_;
  Index below_, above_;  // first_key - query, last_key - query
};

// The diagonal d(i) = i + alibi_shift that ALiBi's distances count from: that of the band; of none, bottom-right.
template <class Index>
XFORMERS_INLINE Index alibi_shift(const MaskBand& mask, const SequenceOf<Index>& sequence) {
  const bool none = mask.window_left == kUnbounded && mask.window_right == kUnbounded;
  return none || mask.bottom_right ? sequence.seqlen_k - sequence.seqlen_q : 0;
}

}  // namespace xformers
