// Who is there: where the rows of one sequence lie, for dense, packed, padded, gappy and paged layouts; and which tile
// of which sequence a thread block works on. Offsets from the caller are clamped to the tensors, so that no value of
// theirs leads out of bounds.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

template <class Integer>
__host__ __device__ constexpr Integer clamp_to(Integer x, Integer low, Integer high) {
  return x < low ? low : x > high ? high : x;
}
template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// Lengths stay below this, so that sums of two fit in an int.
inline constexpr int64_t kMaxSeqlen = int64_t{1} << 30;

struct Sequence {
  int64_t index, batch;      // which sequence; its batch row
  int64_t q_begin, k_begin;  // paged: k_begin counts in the sequence's own pages
  int seqlen_q, seqlen_k;
};

__host__ __device__ inline int64_t num_sequences(const AttentionShape& shape, const SeqLayout& layout) {
  return layout.packed() ? layout.num_sequences : shape.batch;
}

__device__ inline Sequence sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  if (!layout.packed()) {
    return {index, index, 0, 0, static_cast<int>(shape.seqlen_q), static_cast<int>(shape.seqlen_k)};
  }
  const int64_t q_begin = clamp_to<int64_t>(layout.cu_seqlens_q[index], 0, shape.seqlen_q);
  const int64_t q_end = clamp_to<int64_t>(layout.cu_seqlens_q[index + 1], q_begin, shape.seqlen_q);
  const int64_t most =
      layout.paged() ? (shape.seqlen_k > 0 ? layout.pages.max_pages * layout.pages.page_size : 0) : shape.seqlen_k;
  const int64_t k_begin = layout.cu_seqlens_k ? clamp_to<int64_t>(layout.cu_seqlens_k[index], 0, most) : 0;
  const int64_t k_end = layout.seqused_k ? k_begin + clamp_to<int64_t>(layout.seqused_k[index], 0, most - k_begin)
                                         : clamp_to<int64_t>(layout.cu_seqlens_k[index + 1], k_begin, most);
  return {index, 0, q_begin, k_begin, static_cast<int>(q_end - q_begin), static_cast<int>(k_end - k_begin)};
}

// The row of K and V that holds a key of the sequence.
__device__ inline int64_t key_row(const AttentionShape& shape, const SeqLayout& layout, const Sequence& sequence,
                                  int key) {
  const int64_t position = sequence.k_begin + key;
  if (!layout.paged()) return position;
  const PageTable& pages = layout.pages;
  const auto place = static_cast<uint32_t>(position), size = static_cast<uint32_t>(pages.page_size);
  const int64_t page = pages.data[sequence.index * pages.row_stride + place / size];
  return clamp_to<int64_t>(page * pages.page_size + place % size, 0, shape.seqlen_k - 1);
}

// Tiles of `tile_rows` rows, sequence after sequence: the tile that comes `index`-th. All lanes of a warp call it.
struct SequenceTile {
  int64_t sequence = -1;  // -1: there are fewer tiles
  int first_row = 0;
};
template <class RowsOf>  // rows_of(sequence)
__device__ inline SequenceTile find_tile(int64_t index, int64_t sequences, int tile_rows, const RowsOf& rows_of) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  for (int64_t first = 0; first < sequences; first += 32) {
    const int tiles =
        first + lane < sequences ? static_cast<int>(ceil_div<int64_t>(rows_of(first + lane), tile_rows)) : 0;
    int up_to = tiles;  // tiles of the sequences up to this lane's
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAll, up_to, step);
      if (lane >= step) up_to += other;
    }
    const int all = __shfl_sync(kAll, up_to, 31);
    if (index < all) {
      const int found = __ffs(__ballot_sync(kAll, index < up_to)) - 1;
      const int before = __shfl_sync(kAll, up_to - tiles, found);
      return {first + found, static_cast<int>(index - before) * tile_rows};
    }
    index -= all;
  }
  return {};
}

// The same with a search in place of a sum, for any number of sequences: the tiles of sequence s come from
// offset(s) / tile_rows + s on, where offset(s) counts the rows before it. Places between sequences stay empty; all of
// them are at most max_tiles().
template <class Offset>
__device__ inline SequenceTile search_tile(int64_t index, int64_t sequences, int tile_rows, const Offset& offset) {
  const int lane = threadIdx.x % 32;
  int64_t first = 0, left = sequences;  // the last sequence that begins at or before `index` is among these
  const auto place = [&](int64_t s) { return offset(s) / tile_rows + s; };
  while (left > 0) {
    const int64_t step = ceil_div<int64_t>(left, 32), mine = lane * step;
    const unsigned before = __ballot_sync(0xffffffffu, mine < left && place(first + mine) <= index);
    if (before == 0) break;  // offsets that don't ascend
    const int64_t found = (31 - __clz(static_cast<int>(before))) * step;
    first += found, left = step == 1 ? 0 : min(step, left - found);
    if (left <= 1) return {first, static_cast<int>(min((index - place(first)) * tile_rows, kMaxSeqlen))};
  }
  return {};
}

}  // namespace xformers::cuda
