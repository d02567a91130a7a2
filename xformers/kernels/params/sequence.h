// Who is there: where the rows of one sequence lie in dense, packed, padded, gappy and paged layouts. Plain integer
// arithmetic for every device; Index counts rows and keys of a sequence: int on CUDA, int64_t on the CPU. Offsets from
// the caller are clamped to the tensors, so that no value of theirs leads out of bounds.
#pragma once

#include <cstdint>
#include <type_traits>

#include "xformers/kernels/base/inline.h"
#include "xformers/kernels/params/attention.h"

namespace xformers {

template <class Integer>
XFORMERS_INLINE Integer clamp_to(Integer x, std::type_identity_t<Integer> low, std::type_identity_t<Integer> high) {
  return x < low ? low : x > high ? high : x;
}

// Sequences are shorter than this: sums of two lengths fit into an Index.
template <class Index>
inline constexpr int64_t kMaxSeqlenOf = int64_t{1} << (sizeof(Index) == 4 ? 30 : 60);

template <class Index>
struct SequenceOf {
  int64_t index, batch;      // which sequence; its batch row
  int64_t q_begin, k_begin;  // first rows; paged: k_begin counts in the sequence's own pages
  Index seqlen_q, seqlen_k;
};

XFORMERS_INLINE int64_t num_sequences(const AttentionShape& shape, const SeqLayout& layout) {
  return layout.packed() ? layout.num_sequences : shape.batch;
}

// 0 <= index < num_sequences.
template <class Index>
XFORMERS_INLINE SequenceOf<Index> sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  if (!layout.packed()) {
    return {index, index, 0, 0, static_cast<Index>(shape.seqlen_q), static_cast<Index>(shape.seqlen_k)};
  }
  const auto up_to = [](int64_t begin, int64_t limit, int64_t end) {
    return limit >= 0 && limit < end - begin ? begin + limit : end;
  };
  const int64_t q_begin = clamp_to<int64_t>(layout.cu_seqlens_q[index], 0, shape.seqlen_q);
  const int64_t q_end =
      clamp_to<int64_t>(layout.cu_seqlens_q[index + 1], q_begin, up_to(q_begin, layout.most_queries, shape.seqlen_q));
  const int64_t all =
      layout.paged() ? (shape.seqlen_k > 0 ? layout.pages.max_pages * layout.pages.page_size : 0) : shape.seqlen_k;
  const int64_t k_begin = layout.cu_seqlens_k ? clamp_to<int64_t>(layout.cu_seqlens_k[index], 0, all) : 0;
  const int64_t most = up_to(k_begin, layout.most_keys, all);
  const int64_t k_end = layout.seqused_k ? k_begin + clamp_to<int64_t>(layout.seqused_k[index], 0, most - k_begin)
                                         : clamp_to<int64_t>(layout.cu_seqlens_k[index + 1], k_begin, most);
  return {index, 0, q_begin, k_begin, static_cast<Index>(q_end - q_begin), static_cast<Index>(k_end - k_begin)};
}

// The row of K and V that holds a key of the sequence. Pages outside of the tensors are clamped into them.
template <class Index>
XFORMERS_INLINE int64_t key_row(const AttentionShape& shape, const SeqLayout& layout, const SequenceOf<Index>& sequence,
                                Index key) {
  const int64_t position = sequence.k_begin + key;
  if (!layout.paged()) return position;
  const PageTable& pages = layout.pages;
  const auto place = static_cast<uint32_t>(position), size = static_cast<uint32_t>(pages.page_size);
  const int64_t page = pages.data[sequence.index * pages.row_stride + place / size];
  return clamp_to<int64_t>(page * pages.page_size + place % size, 0, shape.seqlen_k - 1);
}

// Rows of K and V that lie next to each other.
struct RowRun {
  int64_t row, count;
};

// The rows of keys [key, end), key < end, as far as they lie next to each other.
template <class Index>
XFORMERS_INLINE RowRun rows_from(const AttentionShape& shape, const SeqLayout& layout,
                                 const SequenceOf<Index>& sequence, Index key, Index end) {
  const int64_t row = key_row(shape, layout, sequence, key), wanted = end - key;
  if (!layout.paged()) return {row, wanted};
  const PageTable& pages = layout.pages;
  const auto place = static_cast<uint32_t>(sequence.k_begin + key), size = static_cast<uint32_t>(pages.page_size);
  const int32_t* page = pages.data + sequence.index * pages.row_stride + place / size;
  if (row != *page * pages.page_size + place % size) return {row, 1};  // clamped
  int64_t count = pages.page_size - place % size;
  for (; count < wanted && page[1] == int64_t{page[0]} + 1; ++page) count += pages.page_size;
  const int64_t most = shape.seqlen_k - row < wanted ? shape.seqlen_k - row : wanted;
  return {row, count < most ? count : most};
}

}  // namespace xformers
