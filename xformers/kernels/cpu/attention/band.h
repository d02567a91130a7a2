// A sequence inside the tensors, and the band of its score matrix that is visible. Plain integer arithmetic: all that
// the kernels, forward and backward, ask about masks.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

#define XFORMERS_BAND_INLINE inline __attribute__((always_inline))

struct Range {
  int64_t begin, end;
  XFORMERS_BAND_INLINE bool empty() const { return begin >= end; }
};

XFORMERS_BAND_INLINE int64_t clamp_to(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// Rows of K and V that lie next to each other.
struct RowRun {
  int64_t row, count;
};

// One sequence: where its rows lie. Dense layouts: the whole of one batch row.
struct Sequence {
  int64_t batch;  // index into the batch dimension of q, k, v, out
  int64_t q_begin, seqlen_q;
  int64_t k_begin, seqlen_k;            // paged: k_begin counts from the sequence's first page
  const int32_t* pages = nullptr;       // paged: this sequence's row of the table
  int64_t page_size = 0, num_rows = 0;  // paged: num_rows of K and V in all

  // The rows from `key` on, up to `end` or as far as they lie next to each other. Entries of the table that point
  // outside of the tensors are clamped into them.
  XFORMERS_BAND_INLINE RowRun rows_from(int64_t key, int64_t end) const {
    if (!pages) return {k_begin + key, end - key};
    const int64_t position = k_begin + key, last_page = (num_rows - 1) / page_size;
    int64_t index = position / page_size;
    const int64_t page = clamp_to(pages[index], 0, last_page), offset = position - index * page_size;
    const int64_t row = page * page_size + offset;
    if (row >= num_rows) return {num_rows - 1, 1};  // of a last page that is cut short
    int64_t count = page_size - offset;
    while (count < end - key && pages[index] >= 0 && pages[index + 1] == int64_t{pages[index]} + 1) {
      ++index;
      count += page_size;
    }
    const int64_t there = num_rows - row < end - key ? num_rows - row : end - key;
    return {row, count < there ? count : there};
  }
};

XFORMERS_BAND_INLINE int64_t num_sequences(const AttentionShape& shape, const SeqLayout& layout) {
  return layout.packed() ? layout.num_sequences : shape.batch;
}

// Offsets from the caller are clamped to the tensors, so that no value of theirs leads out of bounds.
XFORMERS_BAND_INLINE Sequence sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  if (!layout.packed()) return {index, 0, shape.seqlen_q, 0, shape.seqlen_k};
  const int64_t q_begin = clamp_to(layout.cu_seqlens_q[index], 0, shape.seqlen_q);
  const int64_t q_end = clamp_to(layout.cu_seqlens_q[index + 1], q_begin, shape.seqlen_q);
  if (layout.paged()) {
    const PageTable& table = layout.pages;
    const int64_t capacity = shape.seqlen_k > 0 ? table.max_pages * table.page_size : 0;
    const int64_t k_begin = layout.cu_seqlens_k ? clamp_to(layout.cu_seqlens_k[index], 0, capacity) : 0;
    const int64_t seqlen_k = clamp_to(layout.seqused_k[index], 0, capacity - k_begin);
    return {0,
            q_begin,
            q_end - q_begin,
            k_begin,
            seqlen_k,
            table.data + index * table.row_stride,
            table.page_size,
            shape.seqlen_k};
  }
  const int64_t k_begin = clamp_to(layout.cu_seqlens_k[index], 0, shape.seqlen_k);
  const int64_t k_end = layout.seqused_k ? k_begin + clamp_to(layout.seqused_k[index], 0, shape.seqlen_k - k_begin)
                                         : clamp_to(layout.cu_seqlens_k[index + 1], k_begin, shape.seqlen_k);
  return {0, q_begin, q_end - q_begin, k_begin, k_end - k_begin};
}

// The band of one sequence: query i sees key j iff first_key(i) <= j <= last_key(i).
class Band {
 public:
  XFORMERS_BAND_INLINE Band(const MaskBand& mask, const Sequence& sequence)
      : seqlen_q_(sequence.seqlen_q), seqlen_k_(sequence.seqlen_k) {
    constexpr int64_t kFar = int64_t{1} << 40;  // beyond any sequence, small enough to add to
    const int64_t shift = mask.bottom_right ? sequence.seqlen_k - sequence.seqlen_q : 0;
    below_ = (mask.window_left == kUnbounded || mask.window_left > kFar ? -kFar : -mask.window_left) + shift;
    above_ = (mask.window_right == kUnbounded || mask.window_right > kFar ? kFar : mask.window_right) + shift;
  }

  // Not clamped to the sequence.
  XFORMERS_BAND_INLINE int64_t first_key(int64_t query) const { return query + below_; }
  XFORMERS_BAND_INLINE int64_t last_key(int64_t query) const { return query + above_; }
  XFORMERS_BAND_INLINE int64_t first_query(int64_t key) const { return key - above_; }
  XFORMERS_BAND_INLINE int64_t last_query(int64_t key) const { return key - below_; }

  // Keys that any of these queries sees; queries that see any of these keys.
  XFORMERS_BAND_INLINE Range key_range(Range queries) const {
    return {clamp_to(first_key(queries.begin), 0, seqlen_k_), clamp_to(last_key(queries.end - 1) + 1, 0, seqlen_k_)};
  }
  XFORMERS_BAND_INLINE Range query_range(Range keys) const {
    return {clamp_to(first_query(keys.begin), 0, seqlen_q_), clamp_to(last_query(keys.end - 1) + 1, 0, seqlen_q_)};
  }
  // Every one of these queries sees every one of these keys.
  XFORMERS_BAND_INLINE bool is_full(Range queries, Range keys) const {
    return first_key(queries.end - 1) <= keys.begin && keys.end - 1 <= last_key(queries.begin);
  }

 private:
  int64_t seqlen_q_, seqlen_k_;
  int64_t below_, above_;  // first_key - query, last_key - query
};

}  // namespace xformers::cpu
