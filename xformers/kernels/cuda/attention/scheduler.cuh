// Which tile of which sequence a thread block works on. Offsets of packed sequences are read on the GPU and may be
// anything: a block finds a tile inside of the tensors, or none.
#pragma once

#include "xformers/kernels/cuda/attention/seqlen.cuh"

namespace xformers::cuda {

struct SequenceTile {
  int64_t sequence = -1;  // -1: none
  int first_row = 0;
};

// Tiles of `tile_rows` rows, sequence after sequence: the tile that comes `index`-th, by adding up lengths.
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

// The last of the numbers [0, count) that `before` holds for, as it does for all those before it; -1: it holds for
// none. 32 of them are asked at a time. All lanes of a warp call it.
template <class Before>
__device__ inline int64_t search_last(int64_t count, const Before& before) {
  const int lane = threadIdx.x % 32;
  int64_t first = 0, left = count;  // it is among these
  while (left > 0) {
    const int64_t step = ceil_div<int64_t>(left, 32), mine = lane * step;
    const unsigned holds = __ballot_sync(0xffffffffu, mine < left && before(first + mine));
    if (holds == 0) break;
    const int64_t found = (31 - __clz(static_cast<int>(holds))) * step;
    first += found, left = step == 1 ? 0 : min(step, left - found);
    if (left <= 1) return first;
  }
  return -1;
}

// The same with a search in place of a sum, for any number of sequences: the tiles of sequence s come from
// offset(s) / tile_rows + s on, where offset(s) counts the rows before it. Places between sequences stay empty; all of
// them are at most max_tiles().
template <class Offset>
__device__ inline SequenceTile search_tile(int64_t index, int64_t sequences, int tile_rows, const Offset& offset) {
  const auto place = [&](int64_t s) { return offset(s) / tile_rows + s; };
  const int64_t found = search_last(sequences, [&](int64_t s) { return place(s) <= index; });
  if (found < 0) return {};  // offsets that begin late or don't ascend
  return {found, static_cast<int>(min((index - place(found)) * tile_rows, kMaxSeqlen))};
}

// The packed sequence that has a query, if any has, not before sequence `first`: probably one of the next 32.
__device__ inline int64_t sequence_of_query(const SeqLayout& seq, int64_t query, int64_t first = 0) {
  const int64_t left = seq.num_sequences - first;
  const auto before = [&](int64_t s) { return seq.cu_seqlens_q[first + s] <= query; };
  int64_t found = search_last(first > 0 ? min(left, int64_t{32}) : left, before);
  if (first > 0 && found == 31) found = search_last(left, before);
  return first + max(found, int64_t{0});
}

// The last of the ascending `offsets` that is at most `row`, by one thread; -1: none is.
__device__ inline int64_t last_at_or_before(const int32_t* offsets, int64_t count, int64_t row) {
  int64_t low = 0, high = count;  // offsets[low - 1] <= row < offsets[high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = offsets[middle] <= row ? middle + 1 : middle;
  }
  return low - 1;
}

// Rows of one sequence that a block works on. All lanes of a warp ask for their tile together.
struct RowTile {
  Sequence sequence = {};
  int first = 0, rows = 0;  // of the sequence; rows <= 0: nothing is to be done here
};

// Tile `index` of the queries: of `dense_sequence`, or of all packed ones (max_tiles()). A row is a query and one of
// `packed_heads` heads.
__device__ __forceinline__ RowTile query_tile(const AttentionShape& shape, const SeqLayout& seq, int64_t dense_sequence,
                                              int64_t index, int tile_rows, int packed_heads = 1) {
  RowTile tile;
  if (seq.packed()) {
    const SequenceTile found = search_tile(index, seq.num_sequences, tile_rows, [&](int64_t s) {
      return clamp_to<int64_t>(seq.cu_seqlens_q[s], 0, shape.seqlen_q) * packed_heads;
    });
    if (found.sequence < 0) return tile;
    tile.sequence = sequence_at(shape, seq, found.sequence);
    tile.first = found.first_row;
  } else {
    tile.sequence = sequence_at(shape, seq, dense_sequence);
    tile.first = static_cast<int>(index) * tile_rows;
  }
  tile.rows = min(tile_rows, tile.sequence.seqlen_q * packed_heads - tile.first);
  return tile;
}

// The same of the keys. Those with gaps may lie in any order: their lengths are added up.
__device__ __forceinline__ RowTile key_tile(const AttentionShape& shape, const SeqLayout& seq, int64_t dense_sequence,
                                            int64_t index, int tile_rows) {
  RowTile tile;
  if (seq.packed()) {
    const SequenceTile found = seq.seqused_k
                                   ? find_tile(index, seq.num_sequences, tile_rows,
                                               [&](int64_t s) { return int64_t{sequence_at(shape, seq, s).seqlen_k}; })
                                   : search_tile(index, seq.num_sequences, tile_rows, [&](int64_t s) {
                                       return clamp_to<int64_t>(seq.cu_seqlens_k[s], 0, shape.seqlen_k);
                                     });
    if (found.sequence < 0) return tile;
    tile.sequence = sequence_at(shape, seq, found.sequence);
    tile.first = found.first_row;
  } else {
    tile.sequence = sequence_at(shape, seq, dense_sequence);
    tile.first = static_cast<int>(index) * tile_rows;
  }
  tile.rows = min(tile_rows, tile.sequence.seqlen_k - tile.first);
  return tile;
}

// The first of a sequence's blocks of `rows` queries, where blocks of all sequences are counted. Those of different
// sequences do not meet.
__device__ __forceinline__ int64_t first_query_block(const SeqLayout& seq, const Sequence& sequence, int rows) {
  return seq.packed() ? sequence.q_begin / rows + sequence.index : 0;
}

// A tile of queries or keys of one head; or of queries of the heads of a group that share their keys, which lie side by
// side in it: row = query * packed_heads + head.
struct HeadTile {
  Sequence sequence;
  int group, head;  // of the group; 0 where heads are packed
  int first, rows;  // of the sequence's rows; rows <= 0: nothing is to be done here

  // Of the batch row, group and head in a tensor or a row statistic; of the sequence, in a bias.
  template <class Tensor>
  __device__ __forceinline__ int64_t offset(const Tensor& t) const {
    return sequence.batch * t.batch_stride + group * t.group_stride + head * t.head_stride;
  }
  __device__ __forceinline__ int64_t offset(const ScoreBias& t) const {
    return t.offset(sequence.index, group, head, 0, 0);
  }
  // What the stream of dropout takes for the head.
  __device__ __forceinline__ uint32_t drop_head(const AttentionShape& shape) const {
    return static_cast<uint32_t>(sequence.index * shape.num_heads() + group * shape.heads_per_group + head);
  }
};
enum class RowsOf { kQueries, kKeys };

// Tile `tile` of head `index`, counted over all batch rows (and groups alone, where heads are packed).
template <RowsOf kRowsOf>
__device__ __forceinline__ HeadTile head_tile(const AttentionShape& shape, const SeqLayout& seq, int64_t index,
                                              int64_t tile, int tile_rows, int packed_heads = 1) {
  HeadTile result;
  result.head = 0;
  if (packed_heads == 1) {
    result.head = static_cast<int>(index % shape.heads_per_group);
    index /= shape.heads_per_group;
  }
  result.group = static_cast<int>(index % shape.num_groups);
  index /= shape.num_groups;
  const RowTile rows = kRowsOf == RowsOf::kKeys ? key_tile(shape, seq, index, tile, tile_rows)
                                                : query_tile(shape, seq, index, tile, tile_rows, packed_heads);
  result.sequence = rows.sequence;
  result.first = rows.first;
  result.rows = rows.rows;
  return result;
}

}  // namespace xformers::cuda
