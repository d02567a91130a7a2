// Who sees whom: the band of one sequence's score matrix. Query i sees key j iff first_key(i) <= j <= last_key(i).
#pragma once

#include "xformers/kernels/cuda/attention/seqlen.cuh"

namespace xformers::cuda {

struct Range {
  int begin, end;
  __device__ bool empty() const { return begin >= end; }
};

class Band {
 public:
  Band() = default;
  __device__ Band(const MaskBand& mask, const Sequence& sequence)
      : seqlen_q_(sequence.seqlen_q), seqlen_k_(sequence.seqlen_k) {
    constexpr int64_t kFar = kMaxSeqlen;
    const int64_t shift = mask.bottom_right ? int64_t{sequence.seqlen_k} - sequence.seqlen_q : 0;
    const int64_t below = mask.window_left == kUnbounded ? -2 * kFar : -mask.window_left + shift;
    const int64_t above = mask.window_right == kUnbounded ? 2 * kFar : mask.window_right + shift;
    below_ = static_cast<int>(clamp_to(below, -kFar, kFar));
    above_ = static_cast<int>(clamp_to(above, -kFar, kFar - 1));
  }

  __device__ int first_key(int query) const { return query + below_; }  // neither is clamped to the sequence
  __device__ int last_key(int query) const { return query + above_; }

  // Keys that any of these queries sees; queries that see any of these keys.
  __device__ Range key_range(Range queries) const {
    return {clamp_to(first_key(queries.begin), 0, seqlen_k_), clamp_to(last_key(queries.end - 1) + 1, 0, seqlen_k_)};
  }
  __device__ Range query_range(Range keys) const {
    return {clamp_to(keys.begin - above_, 0, seqlen_q_), clamp_to(keys.end - 1 - below_ + 1, 0, seqlen_q_)};
  }
  // Every one of these queries sees every one of these keys.
  __device__ bool is_full(Range queries, Range keys) const {
    return first_key(queries.end - 1) <= keys.begin && keys.end - 1 <= last_key(queries.begin) && keys.end <= seqlen_k_;
  }
  // Keys that every one of these queries sees.
  __device__ Range full_range(Range queries) const {
    return {first_key(queries.end - 1), min(last_key(queries.begin) + 1, seqlen_k_)};
  }
  // One element; keys past the sequence are invisible.
  __device__ bool visible(int query, int key) const {
    return key >= first_key(query) && key <= last_key(query) && key < seqlen_k_;
  }

 private:
  int seqlen_q_, seqlen_k_;
  int below_, above_;  // first_key - query, last_key - query
};

}  // namespace xformers::cuda
