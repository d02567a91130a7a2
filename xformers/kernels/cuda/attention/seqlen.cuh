// Sequences as the CUDA kernels count them, in 32 bits; and which tile of which sequence a thread block works on.
#pragma once

#include <cstdint>

#include "xformers/kernels/params/sequence.h"

namespace xformers::cuda {

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

inline constexpr int64_t kMaxSeqlen = kMaxSeqlenOf<int>;
using Sequence = SequenceOf<int>;

__device__ __forceinline__ Sequence sequence_at(const AttentionShape& shape, const SeqLayout& layout, int64_t index) {
  return xformers::sequence_at<int>(shape, layout, index);
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
